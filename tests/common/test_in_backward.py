"""The optimizer's step inside the backward pass leaves the weights of an ordinary step, and no gradient."""

import copy
import resource
import sys

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import EncoreError
from common.fast.in_backward import StepInBackward, StepsInBackward, keep_freed_memory
from common.training.optim import adamw, schedule


class Tied(nn.Module):
    """An embedding used twice, a layer used twice, one never, one frozen."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.layer = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens):
        x = self.layer(F.gelu(self.layer(self.norm(self.words(tokens)))))
        return F.linear(self.frozen(x), self.words.weight)


def train(model, optimizer, steps=4):
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        tokens = torch.arange(12).view(2, 6) + step
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("bucket_bytes", [1, 300, 2**20])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weights_are_those_of_an_ordinary_step(kind, bucket_bytes):
    def optimizer_of(model):
        if kind == "adamw":
            return adamw(model, lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    model = Tied()
    other = copy.deepcopy(model)
    train(model, optimizer_of(model))
    optimizer = optimizer_of(other)
    StepInBackward(optimizer, bucket_bytes)
    train(other, optimizer)
    for (name, expected), found in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(expected, found), name
    if kind == "adamw":
        assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}


def test_gradients_of_full_buckets_are_gone_before_the_step_and_the_rest_follows_with_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model)
    StepInBackward(optimizer, bucket_bytes=1)
    model(torch.ones(1, 4)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(before[0].weight, model[0].weight), "updated before step()"
    moved = copy.deepcopy(model)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), model.parameters())), "updated once only"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_allocation():
    keep_freed_memory()

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(5_000_000) for _ in range(4)]
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert sorted(faults() for _ in range(5))[2] < 2000, "80 MB of new memory are 20,000 pages"


def test_removed_it_is_an_ordinary_optimizer():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    StepInBackward(optimizer, 1).remove()
    model(torch.ones(1, 4)).sum().backward()
    model(torch.ones(1, 4)).sum().backward()
    assert torch.equal(model.bias.grad, torch.full((4,), 2.0))


def test_accumulation_is_an_error_not_two_steps():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    StepInBackward(optimizer)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(EncoreError, match="second backward pass"):
        model(torch.ones(1, 4)).sum().backward()


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = Tied()
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.model(batch).flatten(0, 1), batch.flatten())
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return schedule(adamw(self, lr=0.02), "linear", warmup=2, total=6)


def fit(folder, *callbacks, **options):
    module = Module()
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.arange(12).view(6, 2), batch_size=1))
    return module


def test_a_lightning_run_gives_the_same_losses_under_a_schedule(tmp_path):
    steps = StepsInBackward(bucket_bytes=1)
    assert fit(tmp_path, steps).losses == fit(tmp_path).losses
    assert steps.active == []


@pytest.mark.parametrize(
    "options", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}], ids=["clipping", "accumulation"]
)
def test_what_needs_all_gradients_first_is_named(tmp_path, options):
    with pytest.raises(EncoreError, match=f"trainer.{next(iter(options))} needs all gradients"):
        fit(tmp_path, StepsInBackward(), **options)
