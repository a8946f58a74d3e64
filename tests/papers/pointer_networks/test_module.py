"""Training of Pointer Networks: the loss that is logged, resuming, the paper's optimizer."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.paper import paths
from common.training.recipe import Optim
from papers.pointer_networks import module
from papers.pointer_networks.data import GeneratedProblems
from papers.pointer_networks.problems import IGNORE, Batch, held_out, to_targets
from tests import tiny
from tests.helpers import assert_resumes_exactly


def test_training_resumes_bit_for_bit(tmp_path):
    def small_module():
        optim = Optim(name="adam", lr=0.01, schedule="cosine", warmup=2, total=6)
        return module.PointerNetworks(hidden_dim=8, optim=optim)

    data = lambda: GeneratedProblems("hull", 5, 9, batch_size=4, val_sets=4)  # noqa: E731
    assert_resumes_exactly(small_module, data, tmp_path, gradient_clip_val=2.0)


def test_the_smoke_config_lowers_the_loss_on_held_out_sets(tmp_path):
    trained = tiny.train(paths.room("pointer_networks") / "configs" / "smoke.yaml", {}, tmp_path)
    logged = trained.trainer.callback_metrics
    assert logged["val/loss"] < 0.94 * np.log(7)
    points, labels = held_out("hull", 64, 6)
    targets = to_targets(labels)
    logits = trained.model(Batch(points, targets, None))
    assert logged["val/loss"].item() == pytest.approx(module.sequence_loss(logits, targets).item(), rel=1e-5)
    assert logged["val/exact"].item() == pytest.approx(100 * module.exact_share(logits, targets).item())


def test_exact_share_needs_every_counted_step():
    targets = torch.tensor([[1, 2, 0], [1, 0, IGNORE]])
    logits = nn.functional.one_hot(torch.tensor([[1, 2, 1], [1, 0, 2]]), 3).float()
    assert module.exact_share(logits, targets).item() == 0.5


def test_sgd_takes_the_papers_constant_step():
    learner = module.PointerNetworks(hidden_dim=8, optim=Optim(name="sgd", lr=1.0))
    configured = learner.configure_optimizers()  # without a trainer, as a constant rate needs no length
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    for group in configured["optimizer"].param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (1.0, 0, 0)
    schedule = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert {schedule(step) for step in (0, 1, 1000)} == {1.0}
