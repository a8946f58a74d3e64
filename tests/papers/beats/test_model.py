"""BEATs' encoder, predictor, classifier and tokenizers against formulas and an independent implementation."""

import math

import pytest
import torch
from torch.nn import functional as F

from common.errors import EncoreError
from common.fast.flops import multiply_adds
from common.layers.positions import RelativeBias
from papers.beats.model import (
    BUCKETS,
    AudioClassifier,
    ConvPosition,
    Encoder,
    GatedRelativeAttention,
    LabelPredictor,
    TransformerStack,
    crop_to_patches,
    deepnorm_alpha,
    deepnorm_beta,
    num_masked,
    predicted_tokens,
    token_padding,
)
from papers.beats.tokenizers import (
    DistilledTokenizer,
    RandomProjectionTokenizer,
    TokenEstimator,
    distillation_loss,
)

TINY = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}


def tiny_encoder(**changes):
    torch.manual_seed(0)
    encoder = Encoder(**({"patch_size": 4, "patch_dim": 10, "dim": 16, "depth": 2} | TINY | changes))
    with torch.no_grad():  # away from the initial values, so that every parameter shows
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder.eval()


def test_ten_seconds_give_496_tokens_in_time_major_order():
    encoder = tiny_encoder()
    assert crop_to_patches(torch.zeros(1, 1, 998, 128), 16).shape == (1, 1, 992, 128)
    x = torch.zeros(1, 1, 8, 12)
    x[0, 0, 4:, 4:8] = 1  # second time step, second of three bands
    changed = (encoder.patch_embed(x) - encoder.patch_embed(torch.zeros_like(x))).abs().sum(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [4]


def test_a_spectrogram_smaller_than_a_patch_is_a_clear_error():
    with pytest.raises(EncoreError, match="3 frames x 12 mel bins is smaller than one 4 x 4 patch"):
        tiny_encoder()(torch.zeros(1, 1, 3, 12))


def test_attention_equals_wavlm_at_random_weights():
    """WavLM's gate reads the layer's input, BEATs' the query; with an identity query projection they agree."""
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    torch.manual_seed(0)
    theirs = WavLMAttention(16, 2).eval()
    ours, bias = GatedRelativeAttention(16, 2).eval(), RelativeBias(2, **BUCKETS)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.4)
        theirs.q_proj.weight.copy_(torch.eye(16))
        theirs.q_proj.bias.zero_()
        projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
        ours.qkv.weight.copy_(torch.cat([p.weight for p in projections]))
        ours.qkv.bias.copy_(torch.cat([p.bias for p in projections]))
        ours.out.load_state_dict(theirs.out_proj.state_dict())
        ours.gate_proj.load_state_dict(theirs.gru_rel_pos_linear.state_dict())
        ours.gate_scale.copy_(theirs.gru_rel_pos_const.flatten())
        bias.table.load_state_dict(theirs.rel_attn_embed.state_dict())
    x = torch.randn(2, 100, 16)
    padding = torch.zeros(2, 100, dtype=torch.bool)
    padding[1, 90:] = True
    shared = bias(torch.arange(100)[None], 100)
    torch.testing.assert_close(ours(x, shared), theirs(x)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(x, shared, padding), theirs(x, (~padding).long())[0], atol=1e-5, rtol=0)


def test_attention_equals_the_released_stable_softmax_with_the_gate_on_the_unscaled_query():
    torch.manual_seed(1)
    attention = GatedRelativeAttention(8, 2).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x, bias = torch.randn(1, 5, 8), torch.randn(1, 2, 5, 5)
    expected = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (
            x[0] @ weight[rows].T + offset[rows]
            for weight, offset in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3))
        )
        u = (q @ attention.gate_proj.weight.T + attention.gate_proj.bias).view(5, 2, 4).sum(-1).sigmoid()
        gate = u[:, 0] * (u[:, 1] * attention.gate_scale[head] - 1) + 2
        logits = (q / (math.sqrt(4) * 32)) @ k.T
        logits = (logits - logits.max(-1, keepdim=True).values) * 32 + gate[:, None] * bias[0, head]
        expected.append(logits.softmax(-1) @ v)
    expected = torch.cat(expected, dim=-1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x, bias)[0], expected, atol=1e-5, rtol=0)


def test_a_closed_gate_is_exactly_seven_quarters_everywhere():
    attention = GatedRelativeAttention(16, 2)
    torch.nn.init.zeros_(attention.gate_proj.weight)
    torch.nn.init.zeros_(attention.gate_proj.bias)
    assert torch.all(attention.gate(torch.randn(2, 2, 7, 8)) == 1.75)


def test_deepnorm_constants_and_initial_gains():
    assert deepnorm_alpha(12) == pytest.approx(2.2134, abs=5e-5)
    assert deepnorm_beta(12) == pytest.approx(0.3195, abs=5e-5)
    torch.manual_seed(0)
    layer = TransformerStack(64, 3, num_heads=4, mlp_dim=128).layers[2]
    q, k, v = layer.attn.qkv.weight.detach().chunk(3)
    beta, square = deepnorm_beta(3), math.sqrt(2 / 128)
    for weight, std in ((q, square), (k, square), (v, beta * square), (layer.attn.out.weight, beta * square)):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    for weight in (layer.mlp.fc1.weight, layer.mlp.fc2.weight):
        assert weight.std().item() == pytest.approx(beta * math.sqrt(2 / 192), rel=0.05)
    assert layer.attn.gate_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert layer.alpha == deepnorm_alpha(3)


def test_a_layer_is_post_norm_with_a_weighted_residual():
    layer = tiny_encoder().stack.layers[0]
    x, bias = torch.randn(1, 6, 16), torch.randn(1, 2, 6, 6)
    alpha = 4**0.25  # two layers
    hidden = layer.norm1(alpha * x + layer.attn(x, bias))
    torch.testing.assert_close(layer(x, bias), layer.norm2(alpha * hidden + layer.mlp(hidden)))


def test_position_convolution_is_the_padded_convolution_without_its_last_step():
    position = ConvPosition(4, kernel_size=6, groups=2)
    x = torch.randn(1, 9, 4)
    kernel = position.conv.weight
    padded = F.pad(x.transpose(1, 2), (3, 2))  # 6 taps reach 3 tokens back and 2 ahead
    expected = F.gelu(F.conv1d(padded, kernel, position.conv.bias, groups=2)).transpose(1, 2)
    torch.testing.assert_close(position(x), expected)
    gains = position.conv.parametrizations.weight.original0
    assert gains.shape == (1, 1, 6)
    torch.testing.assert_close(kernel.detach().norm(dim=(0, 1)), gains.flatten().detach())


def test_what_stands_in_padding_does_not_reach_the_audio():
    encoder = tiny_encoder()
    x = torch.randn(2, 1, 40, 12)
    padding = token_padding(torch.tensor([40, 17]), 40, 12, 4)
    assert padding[1].nonzero().min() == 15  # 17 frames touch five time steps of three bands
    assert not padding[0].any()
    other = x.clone()
    other[1, :, 20:] = 100.0
    kept = ~padding
    torch.testing.assert_close(encoder(x, padding)[kept], encoder(other, padding)[kept])
    # and padding is zero for the convolution, so the short clip alone gives the same
    torch.testing.assert_close(encoder(x[1:, :, :20])[0], encoder(x, padding)[1, :15], atol=1e-5, rtol=1e-5)


def test_dropped_tokens_act_as_padding_does_and_leave_the_others_their_index():
    encoder = tiny_encoder()
    x = torch.randn(2, 1, 16, 12)
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[0, [0, 5, 7]] = True
    keep[1, [2, 3, 11]] = True
    visible = encoder(x, keep=keep)
    assert visible.shape == (2, 3, 16)
    torch.testing.assert_close(visible, encoder(x, ~keep)[keep].view(2, 3, 16), atol=1e-5, rtol=1e-5)
    compacted = encoder.stack(encoder.proj(encoder.patch_norm(encoder.patch_embed(x)))[keep].view(2, 3, 16))
    assert (visible - compacted).abs().max() > 1e-2


def test_dropped_tokens_leak_nothing_and_cost_no_layer():
    encoder = tiny_encoder()
    keep = torch.zeros(1, 12, dtype=torch.bool)
    keep[0, [1, 6, 10]] = True
    x = torch.randn(1, 1, 16, 12)
    other = torch.randn(1, 1, 16, 12)
    patches = keep.view(1, 1, 4, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(encoder(x, keep=keep), encoder(torch.where(patches, x, other), keep=keep))
    layer = encoder.stack.layers[0].mlp
    rows = []
    layer.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    encoder(x, keep=keep)
    assert rows == [3]


def test_padded_tokens_among_the_visible_are_not_attended():
    encoder = tiny_encoder()
    x, keep = torch.randn(1, 1, 16, 12), torch.zeros(1, 12, dtype=torch.bool)
    keep[0, [0, 4, 9]] = True
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[0, 9:] = True
    both = keep & ~padding
    torch.testing.assert_close(encoder(x, padding, keep)[:, :2], encoder(x, keep=both), atol=1e-5, rtol=1e-5)


def test_without_positions_the_encoder_is_permutation_equivariant():
    stack = tiny_encoder().stack
    x, order = torch.randn(1, 9, 16), torch.randperm(9)
    assert (stack(x)[:, order] - stack(x[:, order])).abs().max() > 1e-3
    with torch.no_grad():
        stack.bias.table.weight.zero_()
        stack.position.conv.parametrizations.weight.original0.zero_()
    torch.testing.assert_close(stack(x)[:, order], stack(x[:, order]), atol=1e-5, rtol=1e-5)


def test_one_bias_table_is_looked_up_once_for_all_layers():
    stack = tiny_encoder(depth=3).stack
    calls = []
    stack.bias.register_forward_hook(lambda *args: calls.append(1))
    stack(torch.randn(1, 5, 16))
    assert calls == [1]
    assert sum("table" in name for name, _ in stack.named_parameters()) == 1
    gates = [layer.attn.gate_proj.weight for layer in stack.layers]
    assert len({id(gate) for gate in gates}) == 3


def test_372_of_496_tokens_are_masked():
    assert num_masked(496) == 372
    assert num_masked(10) == 8  # int(2.5) = 2 stay


def test_predictor_gives_logits_at_masked_audio_tokens_only_with_zeros_in_their_place():
    torch.manual_seed(0)
    predictor = LabelPredictor(7, dim=16, depth=1, **TINY).eval()
    visible = torch.randn(2, 3, 16)
    keep = torch.zeros(2, 8, dtype=torch.bool)
    keep[0, [0, 3, 4]] = True
    keep[1, [1, 2, 7]] = True
    full = torch.zeros(2, 8, 16)
    full[keep] = visible.flatten(0, 1)
    assert predictor(visible, keep).shape == (10, 7)
    torch.testing.assert_close(predictor(visible, keep), predictor.head(predictor.stack(full))[~keep])
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[0, 6:] = True
    assert predictor(visible, keep, padding).shape == (8, 7)
    assert torch.equal(predicted_tokens(keep, padding)[0].nonzero().flatten(), torch.tensor([1, 2, 5]))


def test_predictor_head_costs_masked_positions_only():
    with torch.device("meta"):
        predictor = LabelPredictor(1000, dim=16, depth=1, **TINY)
        narrow = LabelPredictor(1, dim=16, depth=1, **TINY)
        visible = torch.zeros(2, 4, 16)
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[:, :4] = True

    def cost(model):
        model = model.to_empty(device="cpu")
        return multiply_adds(model, torch.zeros(visible.shape), keep)

    assert cost(predictor) - cost(narrow) == 2 * 12 * 16 * 999


def test_clip_logits_are_the_mean_of_token_logits_over_audio():
    torch.manual_seed(0)
    model = AudioClassifier(tiny_encoder(), 5).eval()
    x = torch.randn(2, 1, 16, 12)
    padding = token_padding(torch.tensor([16, 8]), 16, 12, 4)
    logits = model.token_logits(x, padding)
    torch.testing.assert_close(model(x, padding)[1], logits[1, :6].mean(0))
    torch.testing.assert_close(model(x, padding)[0], logits[0].mean(0))
    # the head is not applied to pooled features: a nonlinearity in it would show
    seen = []
    model.head.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    model(x)
    assert seen == [(2, 12, 16)]


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
    encoder = Encoder(patch_size=4, patch_dim=8, dim=16, depth=1, dropout=0.0, attention_dropout=0.0, **TINY)
    return DistilledTokenizer(encoder, num_codes=6, code_dim=5)


def test_gradient_reaches_the_encoder_through_the_codes_alone():
    tokenizer = tiny_tokenizer().train()
    estimator = TokenEstimator(code_dim=5, dim=16, depth=1, dropout=0.0, attention_dropout=0.0, **TINY)
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
    assert TokenEstimator(code_dim=5, dim=16, depth=1, **TINY)(codes).shape == (2, 4, 16)
    assert TokenEstimator(code_dim=5, dim=16, depth=1, num_classes=3, **TINY)(codes).shape == (2, 4, 3)


def test_distillation_loss_is_one_minus_cosine_over_audio_tokens():
    target = torch.randn(2, 3, 4)
    assert distillation_loss(5 * target, target).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(-target, target).item() == pytest.approx(2, abs=1e-6)
    padding = torch.tensor([[False, False, True], [False, True, True]])
    predicted = torch.where(padding[..., None], -target, target)
    assert distillation_loss(predicted, target, padding).item() == pytest.approx(0, abs=1e-6)
