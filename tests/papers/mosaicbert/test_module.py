"""MosaicBERT's optimizer and schedule as the configs state them, validation, and the stages of fine-tuning."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper import recipe
from common.errors import EncoreError
from common.training.recipe import Optim
from papers.mosaicbert import fixtures, glue
from papers.mosaicbert.data import C4
from papers.mosaicbert.model import mosaicbert_tiny
from papers.mosaicbert.module import Pretraining
from tests import tiny

CONFIGS = Path(__file__).parents[3] / "papers" / "mosaicbert" / "configs"


def published(name: str, **changed) -> Optim:
    """The optimizer of a config."""
    return Optim(**(recipe.merged(CONFIGS / f"{name}.yaml")["model"]["init_args"]["optim"] | changed))


def test_weight_decay_follows_the_schedule_but_not_the_peak_rate():
    """Closed form on one weight and one bias over three steps of a moving rate; both decay."""
    for peak in (0.01, 0.5):  # the decay of a step is the same for every peak
        module = Pretraining(published("paper_base", lr=peak, weight_decay=0.1, total=9), "mosaicbert_tiny", 64)
        layer = module.model = torch.nn.Linear(1, 1).double()
        torch.nn.init.constant_(layer.weight, 2.0)
        torch.nn.init.constant_(layer.bias, -3.0)
        optimizer = module.configure_optimizers()["optimizer"]
        w, m, v = np.array([2.0, -3.0]), np.zeros(2), np.zeros(2)
        for t, (scale, g) in enumerate(((0.5, 1.0), (1.0, -0.25), (0.02, 4.0)), start=1):
            gradient = np.array([g, 2 * g])
            layer.weight.grad, layer.bias.grad = (torch.full_like(p, x) for p, x in zip(layer.parameters(), gradient))
            optimizer.param_groups[0]["lr"] = scale * peak
            optimizer.step()
            w = w * (1 - scale * 0.1)
            m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
            w = w - scale * peak * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-6)
            assert [layer.weight.item(), layer.bias.item()] == pytest.approx(w.tolist(), rel=1e-9)


def test_the_rate_rises_over_six_percent_and_falls_to_two_percent_of_its_peak_and_in_fine_tuning_to_zero():
    module = Pretraining(published("paper_base", total=100), "mosaicbert_tiny", 64)
    assert [module.factor(step) for step in range(6)] == pytest.approx([k / 6 for k in range(1, 7)])
    assert module.factor(53) == pytest.approx(1 - 0.98 / 2)
    assert module.factor(100) == pytest.approx(0.02)
    assert published("paper_glue_sst2").factor(100, 100) == 0


def test_validation_reports_the_mean_over_all_labelled_tokens(tmp_path):
    overrides = fixtures.c4("mosaicbert_tiny")(tmp_path)
    names = ("path", "tokenizer", "cache")
    paths = {name: str(overrides[f"data.init_args.{name}"]) for name in names}
    data = C4(**paths, max_length=24, batch_size=4, num_workers=0)
    module = Pretraining(Optim(1e-3), "mosaicbert_tiny", fixtures.VOCAB)
    (metrics,) = tiny.quiet(1).validate(module, data, verbose=False)
    parts = [module.eval().model.labelled(*batch) for batch in data.val_dataloader()]
    logits, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    assert metrics["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["val/accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    with pytest.raises(EncoreError, match="no encoder 'bert_small'; choose mosaicbert_tiny, "):
        Pretraining(Optim(1e-3), "bert_small")


def test_rte_mrpc_and_stsb_start_from_the_mnli_model_and_report_their_measures(tmp_path):
    one = {
        "trainer.accelerator": "cpu", "trainer.precision": "bf16-mixed", "trainer.max_steps": 1, "checkpoint_every": 1,
        "data.init_args.num_workers": 0,
    }  # fmt: skip
    means, pooler = {}, None
    for task, measures in (("mnli", ["accuracy", "accuracy_mm"]), ("mrpc", ["accuracy", "f1"]), ("stsb", ["spearman"])):
        name = f"paper_glue_{task}.yaml"
        write = next(value for pattern, value in fixtures.FIXTURES.items() if Path(name).match(pattern))
        overrides = one | write(tmp_path / f"files_{task}")
        if pooler is not None:
            overrides["model.init_args.checkpoint"] = tmp_path / "mnli_19/last.ckpt"
            overrides |= {"model.init_args.optim.lr": 1e-9, "model.init_args.optim.weight_decay": 0.0}
        cli = tiny.train(CONFIGS / name, overrides, tmp_path / f"{task}_19")
        found = [cli.trainer.callback_metrics[f"val/{measure}"].item() for measure in measures]
        assert cli.trainer.callback_metrics["val/score"] == pytest.approx(np.mean(found), nan_ok=True)
        weight = cli.model.model.pooler.weight.detach().clone()
        torch.testing.assert_close(weight, weight if pooler is None else pooler, atol=1e-4, rtol=1e-4)
        pooler, means[task] = weight, 100 * tiny.logged(tmp_path / f"{task}_19", "val/score")[-1]
    scores = glue.averages(tmp_path)
    assert scores == pytest.approx(means | {"average": np.mean(list(means.values()))}, nan_ok=True)
    with pytest.raises(EncoreError, match="no runs <task>_<seed>"):
        glue.averages(tmp_path / "files_mnli")


def test_the_tiny_sizes_have_about_as_many_parameters_as_their_baseline():
    matched, baseline = (Pretraining(Optim(1e-3), name).model for name in ("mosaicbert_tiny_matched", "bert_tiny"))
    counts = [sum(p.numel() for p in model.encoder.blocks.parameters()) for model in (matched, baseline)]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
    assert mosaicbert_tiny().config["mlp_dim"] == 384
