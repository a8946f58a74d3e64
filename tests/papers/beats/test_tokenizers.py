"""BEATs' tokenizers and losses."""

import pytest
import torch

from common.fast.flops import parameter_count
from papers.beats.model import Encoder
from papers.beats.tokenizers import (
    DistilledTokenizer,
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
