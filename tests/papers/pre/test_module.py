"""PRE's objective, schedule, training and validation."""

import pytest
import torch

from benchmarks.paper import paths
from common.eval.zero_shot import classify
from common.training.trainer import build_trainer
from papers.clip.interop import from_hub
from papers.clip.zero_shot import image_features, zero_shot_classifier
from papers.pre import fixtures
from papers.pre.facts import learning_rate
from papers.pre.interop import load_prompt, save_prompt
from papers.pre.model import Prompt, PromptedCLIP
from papers.pre.module import PromptTuning, prompt_optim
from papers.pre.prompts import context_ids, harmonic_mean, prompt_tokens
from tests import tiny
from tests.helpers import assert_resumes_exactly
from tests.papers.pre.test_data import few_shot_data, root  # noqa: F401
from tests.papers.pre.test_model import WORDS, small_clip

CONFIGS = paths.room("pre") / "configs"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def tuning(**changes) -> PromptTuning:
    torch.manual_seed(3)
    options = {"words": WORDS, "optim": prompt_optim(0.05), "epochs": 4}
    return PromptTuning(PromptedCLIP(small_clip()), **(options | changes))


# Objective and schedule


def test_the_loss_is_the_cross_entropy_over_base_classes_only(root):  # noqa: F811
    data, module = few_shot_data(root), tiny.silent(tuning())
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
    module, data = tuning(epochs=2), few_shot_data(root)
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


def test_dropout_between_the_two_layers_goes_on_exactly_after_a_stop(root, tmp_path):  # noqa: F811
    def module() -> PromptTuning:
        model = PromptedCLIP(small_clip(), variant="lstm2")
        return PromptTuning(model, optim=prompt_optim(0.05), words=WORDS, epochs=4)

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


def test_a_paper_config_starts_from_published_weights_and_its_first_words(tmp_path):
    options = fixtures.few_shot(tmp_path) | {"trainer.max_steps": 1, "trainer.accelerator": "cpu"}
    options |= {"trainer.precision": "32", "data.init_args.num_workers": 0, "trainer.limit_val_batches": 0}
    published = from_hub(tmp_path / "hub")
    trained = tiny.train(CONFIGS / "paper.yaml", options, tmp_path / "run").model.model
    assert torch.equal(trained.clip.text.token_embedding.weight, published.text.token_embedding.weight)
    words = context_ids(fixtures.tokenizer(tmp_path / "tokenizer"), WORDS)
    assert (trained.prompt.context - published.text.token_embedding.weight[words]).abs().max() < 1e-3  # one step on
