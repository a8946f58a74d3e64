"""BEATs' tokenizers and losses."""

import pytest
import torch
from torch.nn import functional as F

from common.errors import EncoreError
from common.fast.flops import parameter_count
from papers.beats.model import Encoder
from papers.beats.tokenizers import (
    DistilledTokenizer,
    EMAQuantizer,
    RandomProjectionTokenizer,
    TokenEstimator,
    beats_base_tokenizer,
    distillation_loss,
)

STACK = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}


def test_published_tokenizer_counts():
    with torch.device("meta"):
        tokenizer = beats_base_tokenizer()
    assert parameter_count(tokenizer, trainable=True) == 91_099_248
    quantizer = tokenizer.quantizer
    assert quantizer.codebook.numel() + quantizer.embed_avg.numel() + quantizer.init_counts.numel() == 525_312
    assert parameter_count(quantizer) == 0


@pytest.mark.parametrize("layer_norm", [False, True])
def test_random_projection_takes_the_nearest_code_of_every_patch(layer_norm):
    tokenizer = RandomProjectionTokenizer(patch_size=4, dim=6, num_codes=9, layer_norm=layer_norm)
    x = torch.randn(2, 1, 9, 8)  # the ninth frame fills no patch
    tokens = tokenizer.tokenize(x)
    assert tokens.shape == (2, 4)
    patch = x[1, 0, 4:8, 0:4].flatten() @ tokenizer.projection  # second time step, first band
    if layer_norm:
        patch = (patch - patch.mean()) / (patch.var(unbiased=False) + 1e-5).sqrt()
    distance = (tokenizer.codebook - patch).square().sum(-1)
    assert tokens[1, 2] == distance.argmin()
    assert len(tokens.unique()) > 1


def test_random_projection_is_drawn_from_its_seed_and_frozen():
    a, b = RandomProjectionTokenizer(seed=1), RandomProjectionTokenizer(seed=1)
    assert torch.equal(a.projection, b.projection)
    assert torch.equal(a.codebook, b.codebook)
    assert not torch.equal(a.codebook, RandomProjectionTokenizer(seed=2).codebook)
    assert a.projection.shape == (256, 256)
    assert a.codebook.shape == (1024, 256)
    assert list(a.parameters()) == []
    assert set(a.state_dict()) == {"projection", "codebook"}


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


def tiny_tokenizer():
    torch.manual_seed(0)
    encoder = Encoder(patch_size=4, patch_dim=8, dim=16, depth=1, dropout=0.0, attention_dropout=0.0, **STACK)
    return DistilledTokenizer(encoder, num_codes=6, code_dim=5)


def test_gradient_reaches_the_encoder_through_the_codes_alone():
    tokenizer = tiny_tokenizer().train()
    estimator = TokenEstimator(code_dim=5, dim=16, depth=1, dropout=0.0, attention_dropout=0.0, **STACK)
    codes, _, _ = tokenizer(torch.randn(2, 1, 8, 8))
    distillation_loss(estimator(codes), torch.randn(2, 4, 16)).backward()
    assert tokenizer.encoder.proj.weight.grad.abs().sum() > 0


def test_tokenize_gives_the_training_time_indices_and_moves_nothing():
    tokenizer = tiny_tokenizer().train()
    x = torch.randn(2, 1, 8, 8)
    tokenizer(x)
    tokenizer.eval()
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    assert torch.equal(tokenizer.tokenize(x), tokenizer(x)[2])
    assert all(torch.equal(value, state[name]) for name, value in tokenizer.state_dict().items())


def test_estimator_predicts_hidden_states_or_class_logits():
    codes = torch.randn(2, 4, 5)
    assert TokenEstimator(code_dim=5, dim=16, depth=1, **STACK)(codes).shape == (2, 4, 16)
    assert TokenEstimator(code_dim=5, dim=16, depth=1, num_classes=3, **STACK)(codes).shape == (2, 4, 3)


def test_distillation_loss_is_one_minus_cosine_over_audio_tokens():
    target = torch.randn(2, 3, 4)
    assert distillation_loss(5 * target, target).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(-target, target).item() == pytest.approx(2, abs=1e-6)
    padding = torch.tensor([[False, False, True], [False, True, True]])
    predicted = torch.where(padding[..., None], -target, target)
    assert distillation_loss(predicted, target, padding).item() == pytest.approx(0, abs=1e-6)
