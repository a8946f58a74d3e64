"""TERA's training: accumulated micro-batches, the schedule, the objective, and what probes read."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from common.training.recipe import Optim
from papers.tera import fixtures
from papers.tera.data import IGNORED, InMemory
from papers.tera.module import PretrainModule
from papers.tera.probes import HEADS, ProbeModule, match_labels, mean_frames, stack_frames
from tests.helpers import train_steps

CONFIGS = Path(__file__).parents[3] / "papers/tera/configs"
ENCODER = {"input_dim": 80, "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}


OPTIM = Optim(lr=2e-4, weight_decay=0.01, schedule="linear", warmup=0.07, total=1000)


def smoke(**data):
    config = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    module = lambda: PretrainModule(OPTIM, encoder=config["model"]["init_args"]["encoder"])  # noqa: E731
    return module, lambda: InMemory(**(config["data"]["init_args"] | data))


def test_accumulated_micro_batches_are_a_mean_of_pooled_means(tmp_path):
    """Two micro-batches give the gradient of the mean of their losses, each pooled on its own."""
    module, make_data = smoke(num_clips=6, batch_size=2, alteration="M")
    module, _ = train_steps(
        lambda: PretrainModule(Optim(lr=1e-12, total=1), encoder=ENCODER | {"dropout": 0.0}),
        make_data,
        tmp_path,
        1,
        limit_val_batches=0,
        accumulate_grad_batches=2,
    )
    assert module.trainer.fit_loop.epoch_loop.batch_progress.total.ready == 2
    assert module.trainer.global_step == 1


def test_schedule_warms_up_over_seven_per_cent_and_decays_to_nothing():
    module = PretrainModule(OPTIM, encoder=ENCODER)
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
    module = PretrainModule(OPTIM, encoder=ENCODER).eval()
    batch = {
        "inputs": torch.randn(2, 9, 80),
        "targets": torch.randn(2, 9, 80),
        "mask": torch.rand(2, 9, 80) < 0.4,
        "lengths": torch.tensor([9, 6]),
    }
    batch["mask"][1, 6:] = False
    logged = module.loss(batch)
    loss = logged["loss"]
    prediction = module.model.head(module.model.encoder(batch["inputs"], batch["lengths"]))
    assert loss.item() == pytest.approx(F.l1_loss(prediction[batch["mask"]], batch["targets"][batch["mask"]]).item())
    assert logged["share"].item() == pytest.approx(batch["mask"].sum().item() / (15 * 80))
    other = dict(batch, targets=torch.where(batch["mask"], batch["targets"], batch["targets"] + 5))
    assert module.loss(other)["loss"].item() == pytest.approx(loss.item(), rel=1e-6)


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
    module = ProbeModule(OPTIM, num_classes=5, head=head, surface_dim=4)
    x, lengths = frames_batch()
    per_frame = head in ("linear", "concat", "hidden")
    batch = {"features": x, "lengths": lengths, "labels": torch.tensor([2, 4])}
    values, count = module.measured(batch)
    assert count == (9 if per_frame else 2)
    other = x.clone()
    other[1, 3:] = 100.0
    assert module.loss(batch | {"features": other})["loss"].item() == pytest.approx(values["loss"].item(), rel=1e-6)
    if per_frame:
        labels = torch.tensor([[1, 2, 3, 4, 0, 1, 2], [3, IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED]])
        logits, same = module(batch | {"labels": labels})
        assert logits.shape == (2, 7, 5)
        torch.testing.assert_close(logits[0, 6], module.head(stretch(x), torch.tensor([7, 4]))[0, 6])
        assert torch.equal(same, labels)
        assert module.measured(batch | {"labels": labels})[1] == 9


def stretch(x):
    return torch.cat([x, x[:, -1:]], dim=1)


def probe(tmp_path, **changes):
    torch.manual_seed(1)
    optim = Optim(lr=1e-2, total=10)
    return ProbeModule(optim, num_classes=3, checkpoint=str(fixtures.released(tmp_path / "states.ckpt")), **changes)


def labelled():
    torch.manual_seed(2)
    return {"features": torch.randn(2, 12, 80), "lengths": torch.tensor([12, 8]), "labels": torch.tensor([0, 2])}


def test_a_frozen_encoder_gets_no_gradient_and_uses_no_dropout(tmp_path):
    module = probe(tmp_path, representation="weighted").train()
    batch = labelled()
    loss = module.loss(batch)["loss"]
    assert loss.item() == module.loss(batch)["loss"].item()
    loss.backward()
    assert all(p.grad is None for p in module.encoder.parameters())
    assert module.mix.weights.grad.abs().sum() > 0
    assert len(module.mix.weights) == 3
    assert {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]} == {
        id(p) for p in [*module.head.parameters(), module.mix.weights]
    }
    assert all(group["weight_decay"] == 0 for group in module.configure_optimizers()["optimizer"].param_groups)


def test_fine_tuning_trains_every_layer_with_dropout(tmp_path):
    module = probe(tmp_path, finetune=True, head="utterance").train()
    batch = labelled()
    loss = module.loss(batch)["loss"]
    assert loss.item() != module.loss(batch)["loss"].item()
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
        untrained = ProbeModule(OPTIM, num_classes=3, encoder=ENCODER).eval()
        assert untrained.represent(batch["features"], batch["lengths"]).shape == (2, 12, 16)
        assert ProbeModule(OPTIM, num_classes=3, surface_dim=80).represent(batch["features"], None) is batch["features"]
