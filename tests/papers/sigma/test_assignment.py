"""SIGMA: prototypes, the symmetric loss, and assignments over processes. Transport itself: tests/common."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from common.losses.transport import sinkhorn
from papers.sigma.assignment import Prototypes, assign, symmetric_loss
from papers.sigma.collapse import effective_rank, spread, usage_entropy


def test_equal_scores_go_to_the_lowest_index_and_cost_two_log_k():
    equal = torch.full((6, 4), 0.3)
    assert assign(equal, eps=0.05).tolist() == [0] * 6, "ties go to the lowest index"
    loss = symmetric_loss(equal, equal, torch.tensor([0, 1, 2, 3, 0, 1]), torch.full((6, 4), 0.25))
    assert float(loss) == pytest.approx(2 * math.log(4), abs=1e-6)


def two_branches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(20, 6, generator=generator),
        torch.randn(20, 6, generator=generator),
        torch.randn(5, 6, generator=generator),
    )


def loss_and_gradients(rows: slice, hard: bool) -> dict[str, torch.Tensor]:
    """Loss of this process's tubes, its gradients, and the assignments of phi."""
    x_phi, x_psi, weight = two_branches()
    x_phi, x_psi = x_phi[rows].requires_grad_(), x_psi[rows].requires_grad_()
    prototypes = Prototypes(*weight.shape)
    with torch.no_grad():
        prototypes.weight.copy_(weight)
    prototypes.normalise_()
    s_phi, s_psi = prototypes(x_phi, detach=False), prototypes(x_psi, detach=True)
    q_phi, q_psi = (assign(s, eps=0.05, hard=hard) for s in (s_phi, s_psi))
    loss = symmetric_loss(s_phi, s_psi, q_phi, q_psi)
    loss.backward()
    assert prototypes.weight.grad is not None
    grads = {"phi": x_phi.grad, "psi": x_psi.grad, "weight": prototypes.weight.grad}
    return {"loss": loss.detach(), "q": q_phi, **grads}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = slice(10 * rank, 10 * rank + 10)
    found = {str(hard): loss_and_gradients(mine, hard) for hard in (True, False)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_assign_and_learn_as_one_with_all_tubes(tmp_path):
    method = "spawn" if torch.cuda.is_available() else "fork"  # forking is quick, but not once a GPU is in use
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method=method)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for hard in (True, False):
        whole = loss_and_gradients(slice(None), hard)
        parts = [rank[str(hard)] for rank in ranks]
        torch.testing.assert_close(torch.cat([p["q"] for p in parts]), whole["q"], atol=1e-5, rtol=1e-4)
        for name in ("loss", "weight"):  # DDP takes the mean over processes
            torch.testing.assert_close(sum(p[name] for p in parts) / 2, whole[name], atol=1e-5, rtol=1e-4)
        for name in ("phi", "psi"):
            torch.testing.assert_close(torch.cat([p[name] for p in parts]) / 2, whole[name], atol=1e-5, rtol=1e-4)
    alone = loss_and_gradients(slice(0, 10), False)["q"]
    assert not torch.allclose(alone, ranks[0]["False"]["q"], atol=1e-2), "one process alone would assign otherwise"


def test_each_branch_predicts_the_other_s_assignment_at_temperature_a_tenth():
    x_phi, x_psi, weight = two_branches()
    s_phi, s_psi = (F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T for x in (x_phi, x_psi))
    q_phi, q_psi = assign(s_phi, eps=0.05), assign(s_psi, eps=0.05)
    rows = torch.arange(20)
    expected = -(s_phi / 0.1).log_softmax(1)[rows, q_psi].mean() - (s_psi / 0.1).log_softmax(1)[rows, q_phi].mean()
    torch.testing.assert_close(symmetric_loss(s_phi, s_psi, q_phi, q_psi), expected)
    own = symmetric_loss(s_phi, s_psi, q_psi, q_phi)
    assert float((own - expected).abs()) > 0.5, "predicting one's own assignment is another loss"
    one_hot = [F.one_hot(q, 5).float() for q in (q_phi, q_psi)]
    torch.testing.assert_close(symmetric_loss(s_phi, s_psi, *one_hot), expected)
    soft = [assign(s, eps=0.05, hard=False) for s in (s_phi, s_psi)]
    torch.testing.assert_close(soft[0], sinkhorn(s_phi, eps=0.05))
    target = -(soft[1] * (s_phi / 0.1).log_softmax(1)).sum(1) - (soft[0] * (s_psi / 0.1).log_softmax(1)).sum(1)
    torch.testing.assert_close(symmetric_loss(s_phi, s_psi, *soft), target.mean())


@pytest.mark.parametrize("hard", [True, False])
def test_gradients_reach_prototypes_through_phi_alone_and_never_through_targets(hard):
    x_phi, x_psi, weight = (x.requires_grad_() for x in two_branches())
    unit = F.normalize(weight.detach(), dim=1).requires_grad_()
    found = loss_and_gradients(slice(None), hard)
    with torch.no_grad():
        targets = [assign(F.normalize(x, dim=1) @ unit.T, eps=0.05, hard=hard) for x in (x_phi, x_psi)]
    phi = F.cross_entropy(F.normalize(x_phi, dim=1) @ unit.T / 0.1, targets[1])
    from_phi = torch.autograd.grad(phi, [x_phi, unit])
    psi = F.cross_entropy(F.normalize(x_psi, dim=1) @ unit.T / 0.1, targets[0])
    from_psi = torch.autograd.grad(psi, [x_psi, unit])
    torch.testing.assert_close(found["phi"], from_phi[0])
    torch.testing.assert_close(found["psi"], from_psi[0])
    torch.testing.assert_close(found["weight"], from_phi[1])
    assert from_psi[1].abs().max() > 1e-3, "the part that the detached branch leaves out"


def test_prototypes_are_normalised_in_place_outside_the_graph():
    torch.manual_seed(0)
    prototypes = Prototypes(500, 16)
    assert float(prototypes.weight.detach().std()) == pytest.approx(1, abs=0.05)
    pointer, before = prototypes.weight.data_ptr(), prototypes.weight.detach().clone()
    prototypes.normalise_()
    assert prototypes.weight.data_ptr() == pointer
    assert prototypes.weight.is_leaf
    torch.testing.assert_close(prototypes.weight.detach(), before / before.norm(dim=1, keepdim=True))
    x = 5 * torch.randn(3, 16)
    expected = F.cosine_similarity(x[:, None], before[None], dim=-1)
    torch.testing.assert_close(prototypes(x, detach=True), expected, atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = prototypes(x, detach=False)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, atol=1e-6, rtol=1e-5)


def test_collapse_is_seen_in_spread_rank_and_usage():
    torch.manual_seed(0)
    even, same = torch.randn(4000, 8), torch.randn(1, 8).expand(100, 8) * torch.rand(100, 1)
    assert float(spread(even)) == pytest.approx(1, abs=0.02)
    assert effective_rank(even) == pytest.approx(8, abs=0.1)
    assert float(spread(same)) == pytest.approx(0, abs=1e-5)
    assert effective_rank(same) == pytest.approx(1, abs=1e-5)
    assert float(usage_entropy(torch.arange(4), 4)) == pytest.approx(1)
    assert float(usage_entropy(torch.zeros(4, dtype=torch.long), 4)) == 0
    assert float(usage_entropy(torch.tensor([0, 0, 1, 1]), 4)) == pytest.approx(0.5)
