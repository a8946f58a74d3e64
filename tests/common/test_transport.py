"""common.losses.transport: Sinkhorn's assignments against references and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment, linprog

from common.losses.transport import sinkhorn

MIN_EPS = 0.025


def cosines(n: int, k: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, c = (F.normalize(torch.randn(m, dim, generator=generator), dim=1) for m in (n, k))
    return x @ c.T


def transport(scores: np.ndarray, eps: float, iterations: int) -> np.ndarray:
    """Entropic transport by scaling vectors in float64: P = diag(b) exp(S / eps) diag(a); rows are tubes.

    a gives prototypes 1/K of the mass, b then gives tubes 1/N; returned with rows that sum to 1.
    """
    kernel = np.exp(scores.astype(np.float64) / eps)
    n, k = kernel.shape
    b = np.ones(n)
    for _ in range(iterations):
        a = (1 / k) / (kernel.T @ b)
        b = (1 / n) / (kernel @ a)
    return n * b[:, None] * kernel * a


@pytest.mark.parametrize("eps", [0.05, 0.03])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_assignments_equal_a_float64_reference(eps, iterations):
    scores = cosines(40, 7)
    found = sinkhorn(scores, eps=eps, iterations=iterations)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), transport(scores.numpy(), eps, iterations), atol=1e-5, rtol=1e-4)


def test_the_limit_is_the_optimum_of_entropic_transport():
    scores, eps = cosines(12, 4), 0.2
    plan = sinkhorn(scores, eps=eps, iterations=500).double().numpy() / 12
    np.testing.assert_allclose(plan.sum(1), 1 / 12, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), 1 / 4, rtol=1e-5)

    def cost(p: np.ndarray) -> float:
        return float((p * -scores.double().numpy()).sum() + eps * (p * np.log(p)).sum())

    best = cost(plan)
    rng = np.random.default_rng(0)
    for _ in range(200):  # any step that keeps the marginals costs more
        step = rng.normal(size=plan.shape)
        step -= step.mean(0, keepdims=True) + step.mean(1, keepdims=True) - step.mean()
        assert cost(np.maximum(plan + 1e-3 * plan.min() * step, 1e-12)) > best - 1e-9
    residual = np.log(plan) - scores.double().numpy() / eps  # duals: a function of the tube plus one of the prototype
    residual -= residual.mean(0, keepdims=True) + residual.mean(1, keepdims=True) - residual.mean()
    assert np.abs(residual).max() < 1e-4


def test_a_small_eps_finds_the_exact_equal_partition():
    scores = cosines(12, 4, seed=3)
    rows, columns = linear_sum_assignment(-np.repeat(scores.numpy(), 3, axis=1))
    exact = np.empty(12, dtype=int)
    exact[rows] = columns // 3
    found = sinkhorn(scores, eps=MIN_EPS, iterations=3000).argmax(1)
    assert found.tolist() == exact.tolist()
    assert torch.bincount(found).tolist() == [3, 3, 3, 3]
    assert scores.argmax(1).tolist() != exact.tolist(), "nearest prototypes would not be an equal partition here"
    marginals = np.vstack([np.kron(np.eye(12), np.ones(4)), np.kron(np.ones(12), np.eye(4))])
    best = linprog(-scores.double().numpy().ravel(), A_eq=marginals, b_eq=[1 / 12] * 12 + [1 / 4] * 4).fun
    assert -float(scores[torch.arange(12), found].sum()) / 12 == pytest.approx(best, abs=1e-6)


def test_tubes_are_normalised_last_and_prototypes_converge():
    scores = cosines(60, 5)
    for iterations in (1, 10):
        assert torch.allclose(sinkhorn(scores, eps=0.05, iterations=iterations).sum(1), torch.ones(60), atol=1e-6)
    mass = [sinkhorn(scores, eps=0.05, iterations=i).sum(0).sub(12).abs().max() for i in (1, 10, 300)]
    assert mass[0] > mass[1] > 0.5, "ten iterations are not convergence"
    assert mass[2] < 0.01


def test_closed_forms():
    assert torch.equal(sinkhorn(cosines(9, 1), eps=0.05), torch.ones(9, 1))
    equal = torch.full((6, 4), 0.3)
    torch.testing.assert_close(sinkhorn(equal, eps=0.05), torch.full((6, 4), 0.25))


def test_invariances():
    scores = cosines(30, 6)
    base = sinkhorn(scores, eps=0.05)
    torch.testing.assert_close(sinkhorn(scores + 7.0, eps=0.05), base, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sinkhorn(scores - 90.0, eps=0.05), base, atol=1e-3, rtol=1e-2)
    rows, columns = torch.randperm(30), torch.randperm(6)
    torch.testing.assert_close(sinkhorn(scores[rows], eps=0.05), base[rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sinkhorn(scores[:, columns], eps=0.05), base[:, columns], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sinkhorn(4 * scores, eps=0.2), base, atol=1e-6, rtol=1e-5)
    other = scores.clone()
    other[0] = scores[1]
    assert not torch.allclose(sinkhorn(other, eps=0.05)[1:], base[1:], atol=1e-3), "the batch is assigned as a whole"


def test_half_precision_scores_are_assigned_in_float32():
    scores = cosines(30, 6).half()
    found = sinkhorn(scores, eps=0.03)
    assert torch.isinf((scores / 0.03).exp()).any(), "exp(1 / 0.03) is 3e14"
    np.testing.assert_allclose(found.numpy(), transport(scores.float().numpy(), 0.03, 10), atol=1e-4, rtol=1e-2)
    assert torch.isfinite(sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), eps=MIN_EPS)).all()
