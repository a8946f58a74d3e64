"""Symmetric InfoNCE, on one process and gathered over two."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from common.losses import gather_with_grad, info_nce


def pairs(n: int = 6, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, n, dim, generator=generator)
    return a.requires_grad_(), b.requires_grad_()


def loss_of(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, **options: bool) -> torch.Tensor:
    return info_nce(F.normalize(a, dim=-1), F.normalize(b, dim=-1), scale, **options)


def test_info_nce_equals_its_definition() -> None:
    a, b = (F.normalize(x.detach(), dim=-1) for x in pairs(3))
    logits = 5.0 * a @ b.T
    rows = sum(logits[i].logsumexp(0) - logits[i, i] for i in range(3)) / 3
    columns = sum(logits[:, i].logsumexp(0) - logits[i, i] for i in range(3)) / 3
    assert float(info_nce(a, b, 5.0)) == pytest.approx(float(rows + columns) / 2, abs=1e-6)


def test_info_nce_closed_forms() -> None:
    a, b = pairs()
    same = torch.ones(6, 4) / 2
    assert float(info_nce(same, same, 100.0)) == pytest.approx(math.log(6), abs=1e-5)
    order = torch.randperm(6)
    base = loss_of(a, b, torch.tensor(3.0))
    torch.testing.assert_close(loss_of(a[order], b[order], torch.tensor(3.0)), base)
    torch.testing.assert_close(loss_of(b, a, torch.tensor(3.0)), base)
    assert not torch.allclose(loss_of(a[order], b, torch.tensor(3.0)), base)
    scale = torch.tensor(7.0, requires_grad=True)
    info_nce(same, same, scale).backward()
    assert float(scale.grad) == pytest.approx(0, abs=1e-6)
    assert not torch.allclose(loss_of(a, b, torch.tensor(1.0)), base), "the temperature matters"


def _two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    a, b = pairs()
    mine = slice(3 * rank, 3 * rank + 3)
    a, b = a.detach()[mine].requires_grad_(), b.detach()[mine].requires_grad_()
    scale = torch.tensor(4.0, requires_grad=True)
    loss = loss_of(a, b, scale, gather=True)
    (loss / 2).backward()  # DDP takes the mean over ranks
    parts = [loss.detach() / 2, scale.grad]
    for part in parts:
        dist.all_reduce(part)
    torch.save({"a": a.grad, "b": b.grad, "loss": parts[0], "scale": parts[1]}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(_two_ranks, args=(str(tmp_path),), nprocs=2)
    a, b = pairs()
    scale = torch.tensor(4.0, requires_grad=True)
    loss = loss_of(a, b, scale)
    loss.backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, whole in (("a", a), ("b", b)):
        torch.testing.assert_close(torch.cat([r[name] for r in ranks]), whole.grad, atol=1e-6, rtol=1e-5)
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], loss.detach(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rank["scale"], scale.grad, atol=1e-6, rtol=1e-5)


def test_gathering_without_a_process_group_changes_nothing() -> None:
    a, b = pairs()
    assert gather_with_grad(a) is a
    torch.testing.assert_close(loss_of(a, b, torch.tensor(2.0), gather=True), loss_of(a, b, torch.tensor(2.0)))
