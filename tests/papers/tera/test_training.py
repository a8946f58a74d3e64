"""TERA's training: the smoke loss falls and resumes exactly, probes read what they should, every config starts."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch.nn import functional as F

from common.errors import EncoreError
from common.training import cli
from papers.tera import interop
from papers.tera.data import IGNORED, InMemory, altered_batch
from papers.tera.model import TERA, Encoder
from papers.tera.module import PretrainModule
from papers.tera.probes import HEADS, ProbeModule, match_labels, mean_frames, stack_frames
from tests.helpers import assert_resumes_exactly, train_steps

CONFIGS = Path(__file__).parents[3] / "papers/tera/configs"
ENCODER = {"input_dim": 80, "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}


def smoke(**data):
    config = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    module = lambda: PretrainModule(**config["model"]["init_args"])  # noqa: E731
    return module, lambda: InMemory(**(config["data"]["init_args"] | data))


def test_the_smoke_loss_falls(tmp_path):
    module, make_data = smoke()
    _, losses = train_steps(module, make_data, tmp_path, 30, limit_val_batches=0)
    assert sum(losses[-5:]) / 5 < 0.93 * sum(losses[:3]) / 3


def test_training_resumes_exactly_with_accumulated_micro_batches(tmp_path):
    module, make_data = smoke(num_clips=20, batch_size=3)  # 16 clips: 5 buckets and one clip left out
    assert_resumes_exactly(module, make_data, tmp_path, limit_val_batches=0, accumulate_grad_batches=2)


def test_accumulated_micro_batches_are_a_mean_of_pooled_means(tmp_path):
    """Two micro-batches give the gradient of the mean of their losses, each pooled on its own."""
    module, make_data = smoke(num_clips=6, batch_size=2, alteration="M")
    module, _ = train_steps(
        lambda: PretrainModule(encoder=ENCODER | {"dropout": 0.0}, lr=0.0, total_steps=1),
        make_data,
        tmp_path,
        1,
        limit_val_batches=0,
        accumulate_grad_batches=2,
    )
    assert module.trainer.fit_loop.epoch_loop.batch_progress.total.ready == 2
    assert module.trainer.global_step == 1


def test_schedule_warms_up_over_seven_per_cent_and_decays_to_nothing():
    module = PretrainModule(encoder=ENCODER, lr=2e-4, total_steps=1000)
    chosen = module.configure_optimizers()
    optimizer, scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1001):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    assert max(rates) == pytest.approx(2e-4)
    assert rates.index(max(rates)) == 69
    assert rates[34] == pytest.approx(1e-4)
    assert rates[535] == pytest.approx(1e-4, rel=1e-3)
    assert rates[1000] == 0
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.01: 1 + 2 * 4 + 2, 0.0: 1 + 2 + 2 * 8 + 2 + 2}


def test_the_module_reconstructs_the_clean_frames_from_the_altered_ones():
    torch.manual_seed(0)
    module = PretrainModule(encoder=ENCODER).eval()
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    batch = {
        "inputs": torch.randn(2, 9, 80),
        "targets": torch.randn(2, 9, 80),
        "mask": torch.rand(2, 9, 80) < 0.4,
        "lengths": torch.tensor([9, 6]),
    }
    batch["mask"][1, 6:] = False
    loss = module.training_step(batch)
    prediction = module.model.head(module.model.encoder(batch["inputs"], batch["lengths"]))
    assert loss.item() == pytest.approx(F.l1_loss(prediction[batch["mask"]], batch["targets"][batch["mask"]]).item())
    assert logged["train/share"].item() == pytest.approx(batch["mask"].sum().item() / (15 * 80))
    other = dict(batch, targets=torch.where(batch["mask"], batch["targets"], batch["targets"] + 5))
    assert module.training_step(other).item() == pytest.approx(loss.item(), rel=1e-6)


def frames_batch():
    torch.manual_seed(1)
    x, lengths = torch.randn(2, 6, 4), torch.tensor([6, 3])
    return x, lengths


def test_nine_frames_are_stacked_within_each_utterance():
    x, lengths = frames_batch()
    y = stack_frames(x, lengths).unflatten(-1, (9, 4))
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            for k in range(9):
                assert torch.equal(y[row, t, k], x[row, min(max(t + k - 4, 0), length - 1)])


def test_means_and_label_matching_ignore_padding():
    x, lengths = frames_batch()
    torch.testing.assert_close(mean_frames(x, lengths)[1], x[1, :3].mean(dim=0))
    longer = match_labels(x, lengths, 8)
    assert torch.equal(longer[0, 6:], x[0, 5].expand(2, 4))
    assert torch.equal(longer[1, 3:], x[1, 2].expand(5, 4))
    assert torch.equal(match_labels(x, lengths, 2), x[:, :2])


@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_classifies_valid_frames_or_utterances_only(head):
    torch.manual_seed(0)
    module = ProbeModule(num_classes=5, head=head, surface_dim=4)
    logged = {}
    module.log_dict = lambda values, batch_size: logged.update(values, n=batch_size)
    x, lengths = frames_batch()
    per_frame = head in ("linear", "concat", "hidden")
    batch = {"features": x, "lengths": lengths, "labels": torch.tensor([2, 4])}
    loss = module.step(batch, "train")
    assert logged["n"] == (9 if per_frame else 2)
    other = x.clone()
    other[1, 3:] = 100.0
    assert module.step(batch | {"features": other}, "train").item() == pytest.approx(loss.item(), rel=1e-6)
    if per_frame:
        labels = torch.tensor([[1, 2, 3, 4, 0, 1, 2], [3, IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED]])
        logits, same = module(batch | {"labels": labels})
        assert logits.shape == (2, 7, 5)
        torch.testing.assert_close(logits[0, 6], module.head(stretch(x), torch.tensor([7, 4]))[0, 6])
        assert torch.equal(same, labels)
        module.step(batch | {"labels": labels}, "val")
        assert logged["n"] == 9


def stretch(x):
    return torch.cat([x, x[:, -1:]], dim=1)


def probe(tmp_path, **changes):
    path = tmp_path / "states.ckpt"
    torch.manual_seed(0)
    interop.save(TERA(Encoder(**ENCODER)), path)
    torch.manual_seed(1)
    return ProbeModule(num_classes=3, checkpoint=str(path), lr=1e-2, **changes)


def labelled():
    torch.manual_seed(2)
    return {"features": torch.randn(2, 12, 80), "lengths": torch.tensor([12, 8]), "labels": torch.tensor([0, 2])}


def test_a_frozen_encoder_gets_no_gradient_and_uses_no_dropout(tmp_path):
    module = probe(tmp_path, representation="weighted").train()
    module.log_dict = lambda *_, **__: None
    batch = labelled()
    loss = module.training_step(batch)
    assert loss.item() == module.training_step(batch).item()
    loss.backward()
    assert all(p.grad is None for p in module.encoder.parameters())
    assert module.mix.weights.grad.abs().sum() > 0
    assert len(module.mix.weights) == 3
    assert {id(p) for g in module.configure_optimizers().param_groups for p in g["params"]} == {
        id(p) for p in [*module.head.parameters(), module.mix.weights]
    }
    assert all(group["weight_decay"] == 0 for group in module.configure_optimizers().param_groups)


def test_fine_tuning_trains_every_layer_with_dropout(tmp_path):
    module = probe(tmp_path, finetune=True, head="utterance").train()
    module.log_dict = lambda *_, **__: None
    batch = labelled()
    loss = module.training_step(batch)
    assert loss.item() != module.training_step(batch).item()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in module.encoder.named_parameters()
        if "qkv.bias" not in n
    )


def test_the_last_layer_is_what_a_probe_sees_by_default(tmp_path):
    module, batch = probe(tmp_path).eval(), labelled()
    with torch.no_grad():
        expected = module.encoder(batch["features"], batch["lengths"])
        torch.testing.assert_close(module.represent(batch["features"], batch["lengths"]), expected)
        untrained = ProbeModule(num_classes=3, encoder=ENCODER).eval()
        assert untrained.represent(batch["features"], batch["lengths"]).shape == (2, 12, 16)
        assert ProbeModule(num_classes=3, surface_dim=80).represent(batch["features"], None) is batch["features"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """LibriSpeech, stored fMLLR, CPC's labels and Speech Commands, a few clips each, in their layouts."""
    root = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    names, lines = [], []
    for speaker in (19, 26):
        for subset in ("train-clean-100", "train-clean-360", "train-other-500"):
            folder = root / "LibriSpeech" / subset / str(speaker) / "198"
            folder.mkdir(parents=True)
            for i in range(4 if subset == "train-clean-100" else 1):
                samples = 33000 + 800 * i
                name = f"{speaker}-198-{i:04d}"
                soundfile.write(folder / f"{name}.flac", 0.1 * rng.standard_normal(samples), 16000)
                if subset == "train-clean-100":
                    names.append(name)
                    lines.append(" ".join([name, *map(str, rng.integers(0, 41, samples // 160))]))
    (root / "labels").mkdir()
    (root / "labels" / "converted_aligned_phones.txt").write_text("\n".join(lines))
    (root / "labels" / "train_split.txt").write_text("\n".join(names[1:]))
    (root / "labels" / "test_split.txt").write_text(names[0])
    for subset in ("train-clean-100", "train-clean-360", "train-other-500"):
        (root / "fmllr" / subset).mkdir(parents=True)
        rows = [",file_path,length,label"]
        for i in range(2):
            np.save(root / "fmllr" / subset / f"{i}.npy", rng.standard_normal((210 + i, 40)).astype("float32"))
            rows.append(f"{i},{subset}/{i}.npy,{210 + i},None")
        (root / "fmllr" / f"{subset}.csv").write_text("\n".join(rows))
    for part, words in (("train", ("yes", "bed", "_background_noise_")), ("test", ("yes", "_silence_"))):
        for word in words:
            (root / part / word).mkdir(parents=True)
            for i in range(3):
                soundfile.write(root / part / word / f"{i}.wav", 0.1 * rng.standard_normal(9000), 16000)
    (root / "train" / "testing_list.txt").write_text("bed/0.wav\n")
    (root / "train" / "validation_list.txt").write_text("bed/1.wav\nyes/1.wav\n")
    return root


def shrink(config, corpora, folder):
    """A paper's config with every size made tiny and its files pointed at the fixtures."""
    config = copy.deepcopy(config)
    init, given, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    if "encoder" in init:
        init["encoder"] |= {name: size for name, size in ENCODER.items() if name != "input_dim"}
    if "checkpoint" in init:
        interop.save(TERA(Encoder(**ENCODER)), folder / "encoder.ckpt")
        init["checkpoint"] = str(folder / "encoder.ckpt")
    given |= {"num_workers": 0, "batch_size": 2}
    given["root"] = str(corpora / ("fmllr" if given.get("features") == "stored" else "LibriSpeech"))
    if "test_root" in given:
        given |= {"root": str(corpora / "train"), "test_root": str(corpora / "test")}
    if "labels" in given:
        given["labels"] = str(corpora / "labels")
    if "tables" in given:
        given["tables"] = str(folder / "tables")
    trainer |= {"max_steps": 1, "accelerator": "cpu", "default_root_dir": str(folder / "run"), "log_every_n_steps": 1}
    if "callbacks" in trainer:
        trainer |= {"val_check_interval": 1}
        trainer["callbacks"][0]["init_args"]["dirpath"] = str(folder / "run")
    config["checkpoint_every"] = 1
    return config


PAPER = sorted(path.stem for path in CONFIGS.glob("paper_*.yaml"))


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_config_takes_a_step_on_files_in_the_real_layout(name, corpora, tmp_path):
    config = shrink(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), corpora, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.run(["fit", "--config", str(path)])
    log = (tmp_path / "run" / "metrics.csv").read_text()
    assert "train/loss" in log
    if "encoder" in config["model"]["init_args"]:
        interop.export(tmp_path / "run" / "last.ckpt", tmp_path / "out.ckpt")
        trained = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
        for key, value in interop.load(tmp_path / "out.ckpt").state_dict().items():
            assert torch.equal(value, trained[f"model.{key}"])
    else:
        assert "val/accuracy" in log
        assert (tmp_path / "run" / "best.ckpt").exists()


def test_a_training_checkpoint_of_something_else_is_not_exported(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "a.ckpt")
    with pytest.raises(EncoreError, match="not a training checkpoint of this paper"):
        interop.export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    probe(tmp_path)
    with pytest.raises(EncoreError, match="not a training checkpoint of this paper"):
        interop.export(tmp_path / "states.ckpt", tmp_path / "b.ckpt")


def test_every_config_says_what_it_is_and_how_to_run_it():
    assert len(PAPER) == 10
    for path in CONFIGS.glob("*.yaml"):
        first, second = path.read_text().splitlines()[:2]
        assert first.startswith("# ")
        assert f"papers.tera.train fit --config papers/tera/configs/{path.name}" in second
        assert set(yaml.safe_load(path.read_text())) >= {"model", "data", "trainer", "seed_everything"}


def test_altered_batches_pad_with_zeros():
    from papers.tera.alteration import Policy

    off = Policy(time=0.0, frequency=0.0, noise=0.0)
    batch = altered_batch([torch.ones(5, 3), torch.ones(8, 3)], off)
    assert batch["lengths"].tolist() == [5, 8]
    assert not batch["targets"][0, 5:].any()
    assert torch.equal(batch["inputs"], batch["targets"])
