"""The EMA quantizer: lookup on the sphere, commitment, the straight-through gradient and how the codebook moves."""

import pytest
import torch
from torch.nn import functional as F

from common.errors import EncoreError
from common.layers.quantizer import EMAQuantizer


def quantizer(num_codes=4, dim=3, **options):
    torch.manual_seed(0)
    result = EMAQuantizer(num_codes, dim, **options)
    result.set_codebook(torch.randn(num_codes, dim))
    return result


def test_lookup_compares_on_the_unit_sphere():
    q = quantizer().eval()
    assert torch.allclose(q.codebook.norm(dim=-1), torch.ones(4))
    e = torch.randn(2, 5, 3)
    codes, _, indices = q(e)
    assert torch.equal(indices, (F.normalize(e, dim=-1) @ q.codebook.T).argmax(-1))
    assert torch.equal(q(100 * e)[2], indices)
    torch.testing.assert_close(codes, q.codebook[indices])


def test_tokens_that_lie_on_a_code_have_no_commitment_loss_and_leave_it_fixed():
    q = quantizer().train()
    before = q.codebook.clone()
    _, loss, indices = q(2.5 * before[2].expand(2, 6, 3))
    assert loss.item() < 1e-12
    assert torch.all(indices == 2)
    torch.testing.assert_close(q.codebook, before)
    torch.testing.assert_close(q.usage, torch.tensor([0.0, 0.0, 0.12, 0.0]))  # 1% of 12 tokens


def test_straight_through_gradient_is_the_identity_after_the_l2_jacobian():
    q = quantizer().eval()
    e = torch.randn(1, 4, 3, requires_grad=True)
    weight = torch.randn(1, 4, 3)
    (q(e)[0] * weight).sum().backward()
    through_codes = e.grad.clone()
    e.grad = None
    (F.normalize(e, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(through_codes, e.grad)
    assert through_codes.abs().sum() > 0


def test_commitment_pulls_the_encoder_only_and_averages_over_elements():
    q = quantizer().eval()
    e = torch.randn(1, 4, 3, requires_grad=True)
    _, loss, indices = q(e)
    unit = F.normalize(e.detach(), dim=-1)
    torch.testing.assert_close(loss, (unit - q.codebook[indices]).square().mean())
    loss.backward()
    assert e.grad.abs().sum() > 0
    assert not q.codebook.requires_grad


def test_codebook_follows_normalised_cluster_means_and_unused_codes_stay():
    q = quantizer(decay=0.9).train()
    before = q.codebook.clone()
    e = F.normalize(before[:2].repeat(1, 3).view(1, 6, 3) + 0.1 * torch.randn(1, 6, 3), dim=-1)
    indices = (e @ before.T).argmax(-1)
    assert set(indices.flatten().tolist()) == {0, 1}
    q(e)
    for code in (0, 1):
        mean = F.normalize(e[indices == code].mean(0), dim=-1)
        torch.testing.assert_close(q.codebook[code], F.normalize(0.9 * before[code] + 0.1 * mean, dim=-1))
    torch.testing.assert_close(q.codebook[2:], before[2:])
    q.eval()
    after = q.codebook.clone()
    q(e)
    assert torch.equal(q.codebook, after)


def test_padding_moves_neither_codebook_nor_loss():
    a, b = quantizer().train(), quantizer().train()
    e = torch.randn(2, 5, 3)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 2:] = True
    other = torch.where(padding[..., None], torch.randn(2, 5, 3), e)
    loss_a, loss_b = a(e, padding)[1], b(other, padding)[1]
    assert torch.equal(loss_a, loss_b)
    assert torch.equal(a.codebook, b.codebook)


def test_first_training_batch_starts_the_codebook_by_cosine_k_means():
    torch.manual_seed(3)
    centres = F.normalize(torch.randn(4, 8), dim=-1)
    e = 3 * centres.repeat(64, 1)[None] + 0.02 * torch.randn(1, 256, 8)
    q = EMAQuantizer(32, 8)
    with pytest.raises(EncoreError, match="codebook is empty"):
        q.eval()(e)
    q.train()(e)
    assert q.initialised
    assert torch.allclose(q.codebook.norm(dim=-1), torch.ones(32))
    assert (centres @ q.codebook.T).max(-1).values.min() > 0.999
    assert q.init_counts.sum() == 256
    moved = q.codebook.clone()
    q(torch.randn(1, 256, 8))
    assert (q.codebook * moved).sum(-1).min() > 0.99  # not started anew


def test_k_means_works_with_fewer_tokens_than_codes():
    q = EMAQuantizer(16, 3).train()
    q(torch.randn(1, 5, 3))
    assert torch.isfinite(q.codebook).all()
    assert torch.allclose(q.codebook.norm(dim=-1), torch.ones(16))
