"""PRE's objective, schedule, training, validation, configs and claims."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

import papers.pre
from common.eval.zero_shot import classify
from common.training.cli import run as cli
from common.training.run import Run
from common.training.trainer import build_trainer
from papers.clip.interop import to_hub
from papers.clip.zero_shot import image_features, zero_shot_classifier
from papers.pre import claims
from papers.pre.facts import learning_rate
from papers.pre.interop import load_prompt, save_prompt
from papers.pre.model import Prompt, PromptedCLIP
from papers.pre.module import PromptTuning
from papers.pre.prompts import harmonic_mean, prompt_tokens
from tests.helpers import assert_resumes_exactly
from tests.papers.pre.test_data import few_shot_data, root  # noqa: F401
from tests.papers.pre.test_model import WORDS, tiny

CONFIGS = Path(papers.pre.__file__).parent / "configs"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def tuning(**changes) -> PromptTuning:
    torch.manual_seed(3)
    return PromptTuning(PromptedCLIP(tiny()), **({"words": WORDS, "lr": 0.05, "epochs": 4} | changes))


def tiny_pre() -> PromptedCLIP:
    """What the paper configs are run with here, through their constructor's name."""
    return PromptedCLIP(tiny())


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


# Objective and schedule


def test_the_loss_is_the_cross_entropy_over_base_classes_only(root):  # noqa: F811
    data, module = few_shot_data(root), tuning()
    module.log = lambda *args, **kwargs: None
    module.prepare(data.tokenizer, {"base": data.base_names, "new": data.new_names})
    batch = next(iter(data.train_dataloader()))
    weights = module.model.classifier(prompt_tokens(data.tokenizer, data.base_names, 4, WORDS))
    logits = module.model.clip.scale * module.model.clip.encode_image(batch["image"]) @ weights.T
    assert logits.shape == (4, 3)
    expected = -logits.log_softmax(dim=1)[torch.arange(4), batch["label"]].mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    kept = {"features": module.model.encode_image(batch["image"]), "label": batch["label"]}
    torch.testing.assert_close(module.training_step(kept, 0), expected)


def test_the_rate_is_constant_in_an_epoch_and_follows_the_released_log():
    logged = {1: 1.0e-05, 2: 2.0e-03, 3: 1.9980e-03, 4: 1.9921e-03, 26: 1.0628e-03, 36: 4.6417e-04, 50: 7.8853e-06}
    for epoch, value in logged.items():
        assert learning_rate(epoch) == pytest.approx(value, rel=5e-5)


def test_training_moves_the_prompt_alone_by_sgd_with_momentum_and_decay(root, tmp_path):  # noqa: F811
    module, data = tuning(lr=0.05, epochs=2), few_shot_data(root)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rates = []
    module.on_train_batch_start = lambda *args: rates.append(module.optimizers().param_groups[0]["lr"])
    build_trainer(tmp_path, max_steps=6, limit_val_batches=0, **QUIET).fit(module, datamodule=data)
    assert rates == pytest.approx([1e-5] * 3 + [0.05] * 3)
    (group,) = module.optimizers().param_groups
    assert {key: group[key] for key in ("momentum", "weight_decay", "dampening", "nesterov")} == {
        "momentum": 0.9, "weight_decay": 5e-4, "dampening": 0, "nesterov": False,
    }  # fmt: skip
    assert {id(p) for p in group["params"]} == {id(p) for p in module.model.prompt.parameters()}
    for name, value in module.state_dict().items():
        if name.startswith("model.clip."):
            assert torch.equal(value, before[name]), name
        elif name.startswith("model.prompt.encoder"):
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("variant", ["lstm1", "lstm2"])
def test_three_steps_a_checkpoint_and_three_more_equal_six(variant, root, tmp_path):  # noqa: F811
    def module() -> PromptTuning:
        return PromptTuning(PromptedCLIP(tiny(), variant=variant), words=WORDS, lr=0.05, epochs=4)

    assert_resumes_exactly(module, lambda: few_shot_data(root), tmp_path, limit_val_batches=0, **QUIET)


def test_a_restored_prompt_does_not_go_back_to_its_first_words(root, tmp_path):  # noqa: F811
    module, data = tuning(), few_shot_data(root)
    loop = build_trainer(tmp_path, max_steps=6, checkpoint_every=1, limit_val_batches=0, **QUIET)
    loop.fit(module, datamodule=data)
    learned = module.model.prompt().detach()
    build_trainer(tmp_path / "again", max_steps=1, **QUIET).validate(module, datamodule=data, verbose=False)
    assert torch.equal(module.model.prompt(), learned)
    fresh = tuning()
    build_trainer(tmp_path / "fresh", max_steps=1, **QUIET).validate(
        fresh, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True
    )
    assert torch.equal(fresh.model.prompt(), learned)


# Validation


def test_base_and_new_are_each_classified_among_their_own_names(root, tmp_path):  # noqa: F811
    data, module = few_shot_data(root), tuning()
    loop = build_trainer(tmp_path, max_steps=1, **QUIET)
    (metrics, _) = loop.validate(module, datamodule=data, verbose=False)
    metrics |= {k: v.item() for k, v in loop.callback_metrics.items()}
    found = {}
    for prefix in ("", "zero_shot_"):
        for part, loader in zip(("base", "new"), data.val_dataloader()):
            names = data.base_names if part == "base" else data.new_names
            features, labels = image_features(module.model.clip, loader)
            if prefix:
                weights = zero_shot_classifier(module.model.clip, data.tokenizer, names, ["{} texture."])
            else:
                weights = module.model.classifier(prompt_tokens(data.tokenizer, names, 4, WORDS))
            hits = classify(features, weights).argmax(dim=1) == labels
            found[prefix + part] = 100 * hits.float().mean().item()
        found[f"{prefix}harmonic_mean"] = harmonic_mean(found[f"{prefix}base"], found[f"{prefix}new"])
    assert {name: metrics[f"val/{name}"] for name in found} == pytest.approx(found)


def test_validation_counts_hits_by_part(root, tmp_path):  # noqa: F811
    data, module = few_shot_data(root), tuning()
    weights = torch.eye(16)
    module.features = lambda batch: weights[batch["label"]]
    module.model.classifier = lambda tokens: weights[:3] if len(tokens) == 3 else weights[[1, 0]]
    loop = build_trainer(tmp_path, max_steps=1, **QUIET)
    loop.validate(module, datamodule=data, verbose=False)
    metrics = loop.callback_metrics
    assert [metrics[f"val/{name}"].item() for name in ("base", "new", "harmonic_mean")] == [100, 0, 0]


def test_a_released_prompt_is_evaluated_and_gone_on_from(root, tmp_path):  # noqa: F811
    torch.manual_seed(8)
    trained = Prompt(32, 4)
    save_prompt(trained, tmp_path / "model.pth.tar-50")
    module, data = tuning(trained=str(tmp_path / "model.pth.tar-50")), few_shot_data(root)
    loop = build_trainer(tmp_path, max_steps=1, checkpoint_every=1, limit_val_batches=1, **QUIET)
    loop.validate(module, datamodule=data, verbose=False)
    assert torch.equal(module.model.prompt(), trained())
    loop.fit(module, datamodule=data)
    again = Prompt(32, 4)
    load_prompt(again, tmp_path / "last.ckpt")  # our own checkpoint serves as well
    assert torch.equal(again(), module.model.prompt())


# Configs


def test_the_smoke_config_trains_validates_and_its_loss_falls(tmp_path):
    trained = cli(["fit", "--config", str(CONFIGS / "smoke.yaml"), "--trainer.default_root_dir", str(tmp_path)])
    curve = losses(tmp_path)
    assert len(curve) == 32
    assert sum(curve[-8:]) / 8 < 0.98 * sum(curve[:8]) / 8
    metrics = trained.trainer.callback_metrics
    for name in ("base", "new", "harmonic_mean", "zero_shot_base"):
        assert 0 <= metrics[f"val/{name}"] <= 100
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["paper", "paper_coop"])
def test_a_paper_config_takes_steps_on_a_split_file_and_validates(name, root, tmp_path):  # noqa: F811
    torch.manual_seed(5)
    published = tiny()
    with torch.no_grad():
        published.text.norm.weight.add_(0.5)  # other weights than tiny_pre() starts with
    to_hub(published, tmp_path / "hub")
    model = {"class_path": f"{__name__}.tiny_pre"}
    changes = {
        "checkpoint_every": 3,
        "trainer": {
            "accelerator": "cpu", "precision": "32", "max_epochs": 2, "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "run"), "check_val_every_n_epoch": 2,
        },
        "model": {"init_args": {"model": model, "weights": str(tmp_path / "hub"), "words": WORDS}},
        "data": {
            "init_args": {
                "root": str(root), "tokenizer": str(root / "tokenizer"), "context_length": 24, "shots": 4,
                "image_size": 16, "batch_size": 4, "num_workers": 0,
            }
        },
    }  # fmt: skip
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(changes))
    trained = cli(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--config", str(tmp_path / "changes.yaml")])
    assert len(losses(tmp_path / "run")) == 6
    assert "val/harmonic_mean" in trained.trainer.callback_metrics
    assert torch.equal(trained.model.model.clip.text.norm.weight, published.text.norm.weight)
    assert not torch.equal(trained.model.model.prompt.context, published.text.token_embedding.weight[:4])


@pytest.mark.parametrize("name, constructor", [("paper", "pre_vit_b16"), ("paper_coop", "coop_vit_b16")])
def test_paper_configs_say_what_the_released_run_says(name, constructor):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("#")
    assert f"configs/{name}.yaml" in text.splitlines()[1]
    config = yaml.safe_load(text)
    args, data = config["model"]["init_args"], config["data"]["init_args"]
    assert args["model"]["class_path"] == f"papers.pre.model.{constructor}"
    assert (args["lr"], args["warmup_lr"], args["momentum"], args["weight_decay"]) == (0.002, 1e-5, 0.9, 5e-4)
    assert args["epochs"] == config["trainer"]["max_epochs"] == 50
    assert (args["words"], data["shots"], data["batch_size"]) == ("a photo of a", 16, 32)
    assert config["trainer"]["precision"] == "16-mixed"
    assert "image_size" not in data  # 224, the module's own


# Claims


def test_a_unit_learns_every_kind_of_prompt_on_one_clip_and_repeats_exactly(tmp_path):
    runs = [Run("pre", "claim", "prompts", 0, "smoke", tmp_path / name) for name in ("a", "b")]
    results = [claims.on_emoji(runs[0]), claims.on_shapes(runs[1])]  # at smoke scale both are shapes
    assert results[0] == results[1]
    kinds = ["zero_shot", *claims.KINDS]
    for kind in kinds:
        base, new = results[0][f"{kind}_base"], results[0][f"{kind}_new"]
        assert results[0][f"{kind}_harmonic_mean"] == pytest.approx(harmonic_mean(base, new))
    assert results[0]["backbone_multiply_adds_g"] > 0
    assert claims.on_emoji(runs[0]) == results[0]  # from what a finished unit has left behind
    kinds_used = [
        {key: runs[0].record.fits[f"{kind}-0"][key] for key in ("module", "steps", "batch_size", "lr")}
        for kind in claims.KINDS
    ]
    assert all(used == kinds_used[0] for used in kinds_used), "every kind is trained alike"
    frozen = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(tmp_path.glob("a/*-0/done.ckpt"))]
    assert len(frozen) == len(claims.KINDS)
    backbone = torch.load(tmp_path / "a" / "backbone" / "done.ckpt", weights_only=True)["state_dict"]
    for state in frozen:
        for name, value in state.items():
            if name.startswith("model.clip."):
                assert torch.equal(value, backbone[name.replace("model.clip.", "model.")]), name


def test_step_time_compares_pre_with_coop(tmp_path):
    metrics = claims.step_time(Run("pre", "cost", "step", 0, "smoke", tmp_path))
    assert metrics["step_time_ratio"] == pytest.approx(metrics["pre_ms"] / metrics["coop_ms"])
    assert metrics["coop_ms"] > 0
