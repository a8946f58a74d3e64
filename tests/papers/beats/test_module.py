"""BEATs' stages: objectives, the iteration driver, fine-tuning, ensembles."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import EncoreError
from common.training.recipe import Optim
from common.training.run import Run
from papers.beats import ensemble, fixtures, interop, iterations
from papers.beats.data import AudioSetData, SoundsData, SpeechCommandsV1
from papers.beats.model import AudioClassifier, Encoder, predicted_tokens
from papers.beats.module import (
    FineTuneModule,
    PatchRegressionModule,
    PretrainModule,
    TokenizerModule,
    mixup,
    perplexity,
    spec_augment,
)
from papers.beats.tokenizers import DistilledTokenizer
from tests import tiny
from tests.helpers import assert_resumes_exactly, train_steps

STACK = fixtures.STACK
ENCODER = {"patch_size": 8, "patch_dim": 8, "dim": 16, "depth": 1, **STACK}
LAYER = {"depth": 1, **STACK}
OPTIM = Optim(lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), schedule="linear", warmup=2, total=6)
SIZES = {"encoder": ENCODER, "num_codes": 6, "code_dim": 4, "optim": OPTIM}


def pretrain(kind=PretrainModule, **changes):
    torch.manual_seed(0)
    return kind(**(SIZES | {"predictor": LAYER} | changes))


def teacher():
    torch.manual_seed(5)
    return Encoder(**ENCODER)


def tokenizer_module(model=None, **changes):
    torch.manual_seed(0)
    return TokenizerModule(**(SIZES | {"teacher": model or teacher(), "estimator": LAYER} | changes))


def batch(frames=None):
    torch.manual_seed(2)
    x = {"spectrogram": torch.randn(4, 1, 32, 16), "label": torch.tensor([0, 1, 2, 0])}
    return x if frames is None else x | {"frames": torch.tensor(frames)}


@pytest.fixture(scope="module")
def sounds():
    data = SoundsData(num_clips=20, seconds=0.4, frames=32, num_mel_bins=16, batch_size=4)
    data.setup()
    return data


class Reuse(SoundsData):
    """The same clips for every trainer, computed once."""

    def __init__(self, made):
        super().__init__(batch_size=4)
        self.train, self.valid = made.train, made.valid

    def setup(self, stage=None):
        pass


def test_uniform_logits_cost_ln_of_the_number_of_codes():
    module = pretrain(num_codes=1024)
    nn.init.zeros_(module.predictor.head.weight)
    nn.init.zeros_(module.predictor.head.bias)
    loss = module.loss(batch())["loss"]
    assert loss.item() == pytest.approx(math.log(1024)) == pytest.approx(6.9315, abs=5e-5)


def test_labels_come_from_the_whole_clean_input_and_the_loss_from_masked_audio_alone(monkeypatch):
    module = pretrain()
    module.predictor.stack.dropout.p = 0.0
    calls = {}
    encode, tokenize = module.encoder.forward, module.tokenizer.tokenize

    def encoder(x, padding=None, keep=None):
        calls["keep"] = keep
        return encode(x, padding, keep)

    def labels(x, padding=None):
        calls["labels"], calls["input"] = tokenize(x, padding), x
        return calls["labels"]

    def predictor(visible, keep, padding=None):
        tokens = predicted_tokens(keep, padding)
        logits = torch.full((*keep.shape, 6), -50.0)
        logits.scatter_(-1, calls["labels"][..., None], 50.0)
        return logits[tokens]

    monkeypatch.setattr(module.encoder, "forward", encoder)
    monkeypatch.setattr(module.tokenizer, "tokenize", labels)
    monkeypatch.setattr(module.predictor, "forward", predictor)
    data = batch([32, 32, 20, 8])
    assert module.loss(data)["loss"].item() == pytest.approx(0, abs=1e-6)  # logits and labels meet at the same tokens
    assert calls["input"] is data["spectrogram"]
    assert calls["keep"].sum(1).tolist() == [2, 2, 2, 2]  # 25% of 8 tokens


def test_validation_hides_the_same_tokens_every_time_and_leaves_the_random_state_alone():
    module, seen = pretrain().eval(), []
    module.log = lambda name, value, **_: seen.append(value.item())
    data = batch()
    for _ in range(2):
        before = torch.get_rng_state()
        module.validation_step(data, 3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
    assert seen[:2] == seen[2:]


def test_label_smoothing_is_the_open_recipes():
    data = batch()
    losses = []
    for smoothing in (0.0, 0.1):
        module = pretrain(label_smoothing=smoothing).eval()
        torch.manual_seed(9)
        losses.append(module.loss(data)["loss"].item())
    assert losses[0] != losses[1]


def test_the_regression_control_predicts_patches_normalised_one_by_one():
    module = pretrain(PatchRegressionModule)
    data = batch()
    target = module.targets(data["spectrogram"], None)
    assert target.shape == (4, 8, 64)
    assert target.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(target.std(-1), torch.ones(4, 8), atol=1e-3, rtol=0)
    patch = data["spectrogram"][1, 0, 8:16, 8:16].flatten()  # token 3: second time step, second band
    torch.testing.assert_close(target[1, 3], (patch - patch.mean()) / patch.std(), atol=1e-4, rtol=1e-4)
    assert module.loss(data)["loss"].item() == pytest.approx(1.0, abs=0.15)  # a near-zero prediction of unit variance


def test_frozen_parts_stay_in_eval_mode_and_untrained():
    frozen = DistilledTokenizer(Encoder(**ENCODER), num_codes=6, code_dim=4)
    frozen.quantizer.set_codebook(torch.randn(6, 4))
    module = pretrain(tokenizer=frozen).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert not any(part.training for part in module.tokenizer.modules())
    assert module.encoder.training
    module.loss(batch())["loss"].backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    second = tokenizer_module().train()
    assert not any(part.training for part in second.teacher.modules())
    trained = {id(p) for group in second.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert trained.isdisjoint({id(p) for p in second.teacher.parameters()})
    assert {id(p) for p in second.tokenizer.parameters()} <= trained


def test_tokenizer_loss_is_distillation_plus_commitment():
    module = tokenizer_module(commitment=2.0)
    seen = module.loss(batch([32, 32, 20, 8]))
    assert seen["loss"].item() == pytest.approx((seen["distillation"] + 2 * seen["commitment"]).item())
    assert seen["commitment"] > 0
    assert 0 < seen["distillation"] < 2
    assert 1 <= seen["perplexity"] <= 6


def test_a_fine_tuned_teacher_teaches_its_class_logits_per_token():
    classifier = AudioClassifier(teacher(), 5).eval()
    module = tokenizer_module(classifier)
    x = batch()["spectrogram"]
    torch.testing.assert_close(module.teach(x, None), classifier.head(classifier.encoder(x)))
    assert module.estimator(torch.randn(1, 3, 4)).shape == (1, 3, 5)
    torch.testing.assert_close(tokenizer_module().teach(x, None), teacher().eval()(x))
    assert torch.isfinite(module.loss(batch())["loss"])


def test_perplexity_is_the_effective_number_of_codes():
    assert perplexity(torch.arange(8), 16).item() == pytest.approx(8)
    assert perplexity(torch.zeros(8, dtype=torch.long), 16).item() == pytest.approx(1)


def test_tokenizer_training_resumes_bit_for_bit_with_its_codebook(sounds, tmp_path):
    assert_resumes_exactly(tokenizer_module, lambda: Reuse(sounds), tmp_path)


def test_three_iterations_start_afresh_and_the_last_may_have_a_fine_tuned_teacher(sounds, tmp_path):
    settings = iterations.Settings(ENCODER, LAYER, LAYER, num_codes=6, code_dim=4, batch_size=4)
    run = Run("beats", "test", "arm", 0, "smoke", tmp_path)
    taught = []

    def fine_tune(encoder):
        taught.append(encoder)
        return AudioClassifier(encoder, 3).eval()

    def go():
        return iterations.iterate(
            run, sounds.train, settings, encoder_steps=1, tokenizer_steps=1, iterations=3, fine_tune=fine_tune
        )

    encoders, tokenizers = go()
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "encoder1",
        "encoder2",
        "encoder3",
        "tokenizer2",
        "tokenizer3",
    ]
    assert len(encoders) == 3
    assert len(tokenizers) == 2
    assert taught[0] is encoders[1]
    assert not torch.equal(encoders[0].proj.weight, encoders[1].proj.weight)
    saved = torch.load(tmp_path / "encoder2" / "done.ckpt", weights_only=True)["state_dict"]
    for name, value in tokenizers[0].state_dict().items():  # encoder 2 learned from tokenizer 2
        assert torch.equal(saved[f"tokenizer.{name}"], value)
    saved = torch.load(tmp_path / "tokenizer2" / "done.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["teacher.proj.weight"], encoders[0].proj.weight)
    again, _ = go()  # every stage is done: nothing trains
    assert all(torch.equal(a.proj.weight, b.proj.weight) for a, b in zip(encoders, again))


def test_every_stage_starts_from_weights_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(iterations, "train_on", lambda run, module, *args, **kwargs: module)
    settings = iterations.Settings(ENCODER, LAYER, LAYER, num_codes=6, code_dim=4, batch_size=4)

    def start(seed):
        run = Run("beats", "test", "arm", seed, "smoke", tmp_path)
        encoders, tokenizers = iterations.iterate(run, None, settings, encoder_steps=1, tokenizer_steps=1)
        return [model.proj.weight for model in [*encoders, *(tokenizer.encoder for tokenizer in tokenizers)]]

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    weights = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def fine_tune(lr=0.1, layer_decay=None, total=10, **changes):
    torch.manual_seed(0)
    optim = Optim(lr=lr, weight_decay=0.01, betas=(0.9, 0.98), schedule="cosine", layer_decay=layer_decay, total=total)
    return FineTuneModule(optim, **({"num_classes": 10, "encoder": ENCODER} | changes))


def test_layer_decay_lowers_the_rate_towards_the_input():
    module = fine_tune(encoder=ENCODER | {"depth": 2}, layer_decay=0.5)
    optimizer = module.configure_optimizers()["optimizer"]
    names = {id(p): name for name, p in module.named_parameters()}
    rates = {names[id(p)]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["model.head.weight"] == pytest.approx(0.1)
    assert rates["model.encoder.stack.layers.1.mlp.fc1.weight"] == pytest.approx(0.05)
    assert rates["model.encoder.stack.layers.0.mlp.fc1.weight"] == pytest.approx(0.025)
    assert rates["model.encoder.stack.bias.table.weight"] == pytest.approx(0.0125)


def test_a_loaded_encoder_trains_with_dropout_and_without_its_old_classifier(tmp_path):
    interop.save(AudioClassifier(teacher(), 4), tmp_path / "tuned.pt")
    module = fine_tune(checkpoint=str(tmp_path / "tuned.pt"), encoder=None)
    assert all(part.training for part in module.modules())
    assert torch.equal(module.model.encoder.proj.weight, teacher().proj.weight)
    assert module.model.head.out_features == 10
    assert module.hparams["encoder"]["dim"] == 16  # so that its checkpoint can be exported


def test_mixup_mixes_input_and_label_by_the_same_share():
    torch.manual_seed(0)
    x = torch.eye(4)[:, None, :, None].expand(4, 1, 4, 2).contiguous()
    padding = torch.eye(4).bool()
    mixed, label, pads = mixup(x, torch.eye(4), padding, 1.0)
    torch.testing.assert_close(mixed[:, 0, :, 0], label)
    torch.testing.assert_close(label.sum(1), torch.ones(4))
    own = label.diagonal()
    assert (own < 1).sum() >= 2
    assert len(own.unique()) > 2  # a share of its own for every clip
    assert torch.equal(pads, padding & (label.diag().round(decimals=4) == 1)[:, None])


def test_spec_augment_zeroes_one_stripe_on_each_axis_in_every_clip():
    torch.manual_seed(0)
    x = torch.ones(64, 1, 20, 12)
    masked = spec_augment(x, 6, 4)[:, 0] == 0
    frames = masked.all(2).sum(1)
    mels = masked.all(1).sum(1)
    assert frames.max() == 6
    assert mels.max() == 4
    assert torch.all(masked == (masked.all(2)[:, :, None] | masked.all(1)[:, None, :]))
    starts = masked.all(2).float().argmax(1)[frames > 0]
    assert starts.max() > 10
    assert torch.equal(spec_augment(x, 0, 0), x)


def test_fine_tuning_objectives():
    ce, bce = (
        fine_tune(objective="ce"),
        fine_tune(objective="bce", mixup_alpha=0.5, time_mask=4, mel_mask=2),
    )
    for module in (ce, bce):
        nn.init.zeros_(module.model.head.weight)
    assert ce.loss(batch()).item() == pytest.approx(math.log(10))
    assert bce.loss(batch()).item() == pytest.approx(math.log(2))


def test_fine_tuning_learns_and_reports_accuracy(sounds, tmp_path):
    module = fine_tune(objective="ce", lr=5e-3, total=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, losses = train_steps(lambda: module, lambda: Reuse(sounds), tmp_path, 50)
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.5  # from about ln 10 by at least 0.15
    assert "val/top1" in (tmp_path / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return fixtures.commands(tmp_path_factory.mktemp("commands"))


def member(path, seed, **changes):
    """A checkpoint of a fine-tuning as the trainer writes it, with random weights; its classifier."""
    torch.manual_seed(seed)
    sizes = {"num_classes": 12, "objective": "ce", "encoder": fixtures.ENCODER}
    module = FineTuneModule(Optim(lr=0.1), **(sizes | changes))
    with torch.no_grad():
        module.model.head.weight.normal_(std=1.0 + 2 * seed)  # members of unlike confidence
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, path)
    return module.model.eval()


def loader_of(data):
    data.setup()
    return data.test_dataloader()


@pytest.mark.parametrize("objective", ["ce", "bce"])
def test_an_ensemble_is_the_mean_of_probabilities_and_not_of_logits(objective, commands, tmp_path):
    paths = [tmp_path / f"{seed}.ckpt" for seed in (0, 1)]
    models = [member(path, seed, objective=objective) for seed, path in enumerate(paths)]
    loader = loader_of(SpeechCommandsV1(str(commands), batch_size=2))
    ours, labels, multilabel = ensemble.average(paths, loader)
    to_probabilities = torch.sigmoid if objective == "bce" else lambda logits: logits.softmax(-1)
    with torch.no_grad():
        logits = [torch.cat([m(b["spectrogram"], ensemble.batch_padding(b, 16)) for b in loader]) for m in models]
    tables = [to_probabilities(x) for x in logits]
    torch.testing.assert_close(ours, (tables[0] + tables[1]) / 2)
    assert (ours - to_probabilities((logits[0] + logits[1]) / 2)).abs().max() > 0.02
    assert multilabel is (objective == "bce")
    assert labels.tolist() == [9, 10, 11]
    alone, _, _ = ensemble.average(paths[1:], loader)
    torch.testing.assert_close(alone, tables[1])


def test_scores_are_macro_map_or_accuracy():
    probabilities = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.1, 0.4]])
    # class 0: the positives are ranked 1 and 3; class 1: the one positive is ranked second
    truths = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    expected = ((1 + 2 / 3) / 2 + 1 / 2) / 2
    assert ensemble.score(probabilities, truths, True) == ("map", pytest.approx(100 * expected))
    assert ensemble.score(probabilities, torch.tensor([0, 0, 0]), False) == ("top1", pytest.approx(200 / 3))


def test_an_ensemble_on_audioset_files_gives_map(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0a,Bark\n1,/m/0b,Rain\n")
    for folder in ("unbalanced_train", "eval"):
        rows = "".join(f'clip-{i}, 0.000, 10.000, "{mid}"\n' for i, mid in enumerate(("/m/0a", "/m/0b")))
        (tmp_path / f"{folder.removesuffix('_train')}{'_train' * (folder != 'eval')}_segments.csv").write_text(rows)
        for i in range(2):
            tiny.wav(tmp_path / folder / f"clip-{i}.wav", 8000, seed=i)
    paths = [str(tmp_path / f"{seed}.ckpt") for seed in (0, 1)]
    for seed, path in enumerate(paths):
        member(path, seed, num_classes=2, objective="bce")
    overrides = ["--data.init_args.root", str(tmp_path), "--data.init_args.num_workers", "0"]
    configs = [f"--config=papers/beats/configs/{name}.yaml" for name in ("base", "paper_finetune")]
    name, value = ensemble.run([*paths, *configs, *overrides])
    assert name == "map"
    data = AudioSetData(str(tmp_path), batch_size=10)
    data.setup()
    probabilities, truths, _ = ensemble.average(paths, data.val_dataloader())
    assert truths.tolist() == [[1, 0], [0, 1]]
    # two clips a class, one of them positive: its precision is 1 when it ranks first, else 1/2
    ranked_first = (probabilities.diagonal() > probabilities.flip(0).diagonal()).double()
    assert value == pytest.approx(100 * (0.5 + ranked_first / 2).mean().item())
    assert "of 2 models" in capsys.readouterr().out


def test_bad_members_and_configs_are_errors_that_name_the_file(commands, tmp_path):
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    member(first, 0)
    member(second, 1, num_classes=5)
    loader = loader_of(SpeechCommandsV1(str(commands), batch_size=2))
    with pytest.raises(EncoreError, match=r"second\.ckpt: has 5 exclusive classes, but .*first\.ckpt has 12"):
        ensemble.average([first, second], loader)
    with pytest.raises(EncoreError, match="at least one checkpoint"):
        ensemble.average([], loader)
    with pytest.raises(EncoreError, match=r"none\.ckpt: no such checkpoint"):
        ensemble.average([tmp_path / "none.ckpt"], loader)
    unknown = AudioClassifier(Encoder(**fixtures.ENCODER), 12).state_dict()
    torch.save({"state_dict": unknown, "hyper_parameters": {}}, second)
    with pytest.raises(EncoreError, match=r"second\.ckpt: holds no classifier"):
        ensemble.average([second], loader)
    with pytest.raises(EncoreError, match="do not fit the data's labels"):
        ensemble.score(*ensemble.average([first], loader)[:2], True)
    with pytest.raises(EncoreError, match="--device quantum: there is no such device"):
        ensemble.run(["--config", "none.yaml", str(first), "--device", "quantum"])
    with pytest.raises(EncoreError, match=r"File does not exist: .*none\.yaml"):
        ensemble.run([str(first), "--config", str(tmp_path / "none.yaml")])
