"""BEATs' stages: objectives, exact resume, the iteration driver, fine-tuning, and the configs."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from common.training.run import Run
from papers.beats import interop, iterations
from papers.beats.data import SoundsData
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
from tests.helpers import assert_resumes_exactly, train_steps

STACK = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}
ENCODER = {"patch_size": 8, "patch_dim": 8, "dim": 16, "depth": 1, **STACK}
LAYER = {"depth": 1, **STACK}
SIZES = {"encoder": ENCODER, "num_codes": 6, "code_dim": 4, "lr": 1e-3, "warmup_steps": 2, "total_steps": 6}


def pretrain(kind=PretrainModule, **changes):
    torch.manual_seed(0)
    return kind(**(SIZES | {"predictor": LAYER} | changes))


def teacher():
    torch.manual_seed(5)
    return Encoder(**ENCODER)


def tokenizer_module(model=None, **changes):
    torch.manual_seed(0)
    return TokenizerModule(**(SIZES | {"teacher": model or teacher(), "estimator": LAYER} | changes))


def quiet(module, seen=None):
    """Outside a trainer: what would be logged goes to `seen`."""
    module.log_dict = lambda values, **kwargs: (seen if seen is not None else {}).update(values)
    module.log = lambda name, value, **kwargs: (seen if seen is not None else {}).update({name: value})
    return module


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
        self.train_set, self.val_set = made.train_set, made.val_set

    def setup(self, stage=None):
        pass


def test_uniform_logits_cost_ln_of_the_number_of_codes():
    module = quiet(pretrain(num_codes=1024))
    nn.init.zeros_(module.predictor.head.weight)
    nn.init.zeros_(module.predictor.head.bias)
    loss = module.training_step(batch())
    assert loss.item() == pytest.approx(math.log(1024)) == pytest.approx(6.9315, abs=5e-5)


def test_labels_come_from_the_whole_clean_input_and_the_loss_from_masked_audio_alone(monkeypatch):
    module = quiet(pretrain())
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
    assert module.training_step(data).item() == pytest.approx(0, abs=1e-6)  # logits and labels meet at the same tokens
    assert calls["input"] is data["spectrogram"]
    assert calls["keep"].sum(1).tolist() == [2, 2, 2, 2]  # 25% of 8 tokens


def test_label_smoothing_is_the_open_recipes():
    data = batch()
    losses = []
    for smoothing in (0.0, 0.1):
        module = quiet(pretrain(label_smoothing=smoothing)).eval()
        torch.manual_seed(9)
        losses.append(module.training_step(data).item())
    assert losses[0] != losses[1]


def test_the_regression_control_predicts_patches_normalised_one_by_one():
    module = quiet(pretrain(PatchRegressionModule))
    data = batch()
    target = module.targets(data["spectrogram"], None)
    assert target.shape == (4, 8, 64)
    assert target.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(target.std(-1), torch.ones(4, 8), atol=1e-3, rtol=0)
    patch = data["spectrogram"][1, 0, 8:16, 8:16].flatten()  # token 3: second time step, second band
    torch.testing.assert_close(target[1, 3], (patch - patch.mean()) / patch.std(), atol=1e-4, rtol=1e-4)
    assert module.training_step(data).item() == pytest.approx(1.0, abs=0.15)  # a near-zero prediction of unit variance


def test_frozen_parts_stay_in_eval_mode_and_untrained():
    frozen = DistilledTokenizer(Encoder(**ENCODER), num_codes=6, code_dim=4)
    frozen.quantizer.set_codebook(torch.randn(6, 4))
    module = quiet(pretrain(tokenizer=frozen)).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert not any(part.training for part in module.tokenizer.modules())
    assert module.encoder.training
    module.training_step(batch()).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    second = quiet(tokenizer_module()).train()
    assert not any(part.training for part in second.teacher.modules())
    trained = {id(p) for group in second.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert trained.isdisjoint({id(p) for p in second.teacher.parameters()})
    assert {id(p) for p in second.tokenizer.parameters()} <= trained


def test_tokenizer_loss_is_distillation_plus_commitment():
    seen = {}
    module = quiet(tokenizer_module(commitment=2.0), seen)
    loss = module.training_step(batch([32, 32, 20, 8]))
    assert loss.item() == pytest.approx((seen["train/distillation"] + 2 * seen["train/commitment"]).item())
    assert seen["train/commitment"] > 0
    assert 0 < seen["train/distillation"] < 2
    assert 1 <= seen["train/perplexity"] <= 6


def test_a_fine_tuned_teacher_teaches_its_class_logits_per_token():
    classifier = AudioClassifier(teacher(), 5).eval()
    module = quiet(tokenizer_module(classifier))
    x = batch()["spectrogram"]
    torch.testing.assert_close(module.teach(x, None), classifier.head(classifier.encoder(x)))
    assert module.estimator(torch.randn(1, 3, 4)).shape == (1, 3, 5)
    torch.testing.assert_close(tokenizer_module().teach(x, None), teacher().eval()(x))
    assert torch.isfinite(module.training_step(batch()))


def test_perplexity_is_the_effective_number_of_codes():
    assert perplexity(torch.arange(8), 16).item() == pytest.approx(8)
    assert perplexity(torch.zeros(8, dtype=torch.long), 16).item() == pytest.approx(1)


def test_pretraining_resumes_bit_for_bit(sounds, tmp_path):
    assert_resumes_exactly(pretrain, lambda: Reuse(sounds), tmp_path)


def test_tokenizer_training_resumes_bit_for_bit_with_its_codebook(sounds, tmp_path):
    assert_resumes_exactly(tokenizer_module, lambda: Reuse(sounds), tmp_path)


def test_three_iterations_start_afresh_and_the_last_may_have_a_fine_tuned_teacher(sounds, tmp_path):
    settings = iterations.Settings(ENCODER, LAYER, LAYER, num_codes=6, code_dim=4)
    run = Run("beats", "test", "arm", 0, "smoke", tmp_path)
    taught = []

    def fine_tune(encoder):
        taught.append(encoder)
        return AudioClassifier(encoder, 3).eval()

    def go():
        return iterations.iterate(
            run, Reuse(sounds), settings, encoder_steps=1, tokenizer_steps=1, iterations=3, fine_tune=fine_tune
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
    monkeypatch.setattr(iterations, "fit", lambda module, *args, **kwargs: module)
    settings = iterations.Settings(ENCODER, LAYER, LAYER, num_codes=6, code_dim=4)

    def start(seed):
        run = Run("beats", "test", "arm", seed, "smoke", tmp_path)
        encoders, tokenizers = iterations.iterate(run, None, settings, encoder_steps=1, tokenizer_steps=1)
        return [model.proj.weight for model in [*encoders, *(tokenizer.encoder for tokenizer in tokenizers)]]

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    weights = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def fine_tune(**changes):
    torch.manual_seed(0)
    sizes = {"num_classes": 10, "encoder": ENCODER, "lr": 0.1, "warmup_steps": 0, "total_steps": 10}
    return FineTuneModule(**(sizes | changes))


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
        quiet(fine_tune(objective="ce")),
        quiet(fine_tune(objective="bce", mixup_alpha=0.5, time_mask=4, mel_mask=2)),
    )
    for module in (ce, bce):
        nn.init.zeros_(module.model.head.weight)
    assert ce.training_step(batch()).item() == pytest.approx(math.log(10))
    assert bce.training_step(batch()).item() == pytest.approx(math.log(2))


def test_fine_tuning_learns_and_reports_accuracy(sounds, tmp_path):
    module = fine_tune(objective="ce", lr=5e-3, layer_decay=1.0, total_steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, losses = train_steps(lambda: module, lambda: Reuse(sounds), tmp_path, 50)
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.5  # from about ln 10 by at least 0.15
    assert "val/accuracy" in (tmp_path / "metrics.csv").read_text()


CONFIGS = sorted((Path(__file__).parents[3] / "papers/beats/configs").glob("*.yaml"))


def test_every_config_says_what_it_is_and_how_to_run_it():
    names = {path.stem for path in CONFIGS}
    assert {"smoke", "cpu", "paper_iter1", "paper_tokenizer", "paper_iter2", "paper_finetune"} <= names
    for path in CONFIGS:
        first, second = path.read_text().splitlines()[:2]
        assert first.startswith("# ")
        assert second.startswith("# ")
        assert f"papers/beats/configs/{path.name}" in second
        assert set(yaml.safe_load(path.read_text())) >= {"model", "data", "trainer", "seed_everything"}
