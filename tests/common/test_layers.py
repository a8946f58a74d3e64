"""Attention, transformer layers, embeddings, ViT: against torch, closed forms and transformers."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.fast.flops import flop_counter, multiply_adds, parameter_count
from common.fast.packed import PackedTransformer, Packing
from common.layers import (
    MLP,
    Attention,
    PatchEmbed,
    Transformer,
    TransformerLayer,
    TubeletEmbed,
    ViT,
    key_padding_mask,
    sincos_1d,
    vit_base_patch16_224,
)
from common.masking import keep_tokens, put_tokens, random_mask


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6, rtol=0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_attention_equals_torchs_multihead_attention_with_padding() -> None:
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(ours.qkv.bias)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x, valid = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    expected = theirs(x, x, x, key_padding_mask=~valid)[0]
    torch.testing.assert_close(ours(x, mask=key_padding_mask(valid)), expected, atol=1e-6, rtol=0)
    additive = torch.zeros(2, 1, 1, 5).masked_fill(~valid[:, None, None], float("-inf"))
    torch.testing.assert_close(ours(x, mask=additive), expected, atol=1e-6, rtol=0)


def test_causal_and_padding_masks_together_hide_both() -> None:
    layer = TransformerLayer(8, 2, 16)
    x, mask = torch.randn(1, 6, 8), key_padding_mask(torch.tensor([5]), 6)
    base = layer(x, mask=mask, is_causal=True)
    later = x.clone()
    later[:, 3:] += torch.randn(3, 8)  # not a constant: the pre-norm would remove it
    assert same(layer(later, mask=mask, is_causal=True)[:, :3], base[:, :3])
    padded = x.clone()
    padded[:, 5] += torch.randn(8)
    assert same(layer(padded, mask=mask, is_causal=True)[:, :5], base[:, :5])
    earlier = x.clone()
    earlier[:, 0] += torch.randn(8)
    assert not same(layer(earlier, mask=mask, is_causal=True)[:, 1:5], base[:, 1:5])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pieces", [[1] * 6, [3, 3], [1, 5]], ids=["one by one", "halves", "one then five"])
def test_decoding_with_a_cache_equals_decoding_at_once(norm: str, pieces: list[int]) -> None:
    stack = Transformer(2, 8, 2, 16, norm=norm, cross_dim=6).eval()
    x, context = torch.randn(2, 6, 8), torch.randn(2, 4, 6)
    mask = key_padding_mask(torch.tensor([4, 2]), 4)
    whole = stack(x, is_causal=True, context=context, context_mask=mask)
    cache, parts = stack.make_cache(), []
    for part in x.split(pieces, dim=1):
        parts.append(stack(part, is_causal=True, context=context, context_mask=mask, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)
    order = torch.tensor([1, 1, 0])
    for layer in cache:
        layer.reorder(order)
    again = stack(x[order, :1], is_causal=True, context=context[order], context_mask=mask[order], cache=cache)
    longer = torch.cat([x[order], x[order, :1]], dim=1)
    expected = stack(longer, is_causal=True, context=context[order], context_mask=mask[order])[:, -1:]
    torch.testing.assert_close(again, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_reading_a_few_positions_equals_picking_them_from_all(norm: str) -> None:
    stack = Transformer(2, 8, 2, 16, norm=norm, qkv_bias="qv").eval()
    x, read = torch.randn(3, 6, 8), torch.tensor([[0, 4], [5, 2], [1, 1]])
    mask = key_padding_mask(torch.tensor([6, 6, 3]), 6)
    for options in ({}, {"mask": mask}, {"is_causal": True}, {"mask": mask, "is_causal": True}):
        x.requires_grad_().grad = None
        picked = stack(x, **options)[torch.arange(3)[:, None], read]
        picked.square().sum().backward()
        gradient, x.grad = x.grad, None
        few = stack(x, read=read, **options)
        few.square().sum().backward()
        assert same(few, picked)
        assert torch.allclose(x.grad, gradient, atol=1e-5)


def test_pre_and_post_norm_layers_equal_torchs() -> None:
    for norm in ("pre", "post"):
        ours = TransformerLayer(8, 2, 16, norm=norm, activation="gelu")
        theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=norm == "pre")
        state = {
            "self_attn.in_proj_weight": ours.attn.qkv.weight,
            "self_attn.in_proj_bias": ours.attn.qkv.bias,
            "self_attn.out_proj.weight": ours.attn.out.weight,
            "self_attn.out_proj.bias": ours.attn.out.bias,
            "linear1.weight": ours.mlp.fc1.weight,
            "linear1.bias": ours.mlp.fc1.bias,
            "linear2.weight": ours.mlp.fc2.weight,
            "linear2.bias": ours.mlp.fc2.bias,
            "norm1.weight": ours.norm1.weight.data.normal_(),
            "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight.data.normal_(),
            "norm2.bias": ours.norm2.bias,
        }
        theirs.load_state_dict(state)
        x = torch.randn(2, 5, 8)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


def test_without_a_key_bias_the_function_class_is_the_same() -> None:
    """Softmax does not see a key bias, so "qv" equals full biases whose key part is anything."""
    full, qv = Attention(8, 2), Attention(8, 2, qkv_bias="qv")
    qv.qkv.weight, qv.out = full.qkv.weight, full.out
    full.qkv.bias.data.normal_()
    qv.q_bias.data, qv.v_bias.data = full.qkv.bias.data[:8], full.qkv.bias.data[16:]
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(full(x), qv(x), atol=1e-6, rtol=0)
    assert parameter_count(full) - parameter_count(qv) == 8


def test_quick_gelu_is_not_gelu() -> None:
    x = torch.linspace(-3, 3, 7)
    quick = MLP(1, 1, activation="quick_gelu").act(x)
    torch.testing.assert_close(quick, x * torch.sigmoid(1.702 * x))
    assert (quick - F.gelu(x)).abs().max() > 0.01


def test_drop_path_grows_with_depth_and_keeps_the_mean() -> None:
    stack = Transformer(5, 8, 2, 16, drop_path=0.4)
    assert [getattr(layer.drop_path, "p", 0.0) for layer in stack] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    dropped = stack.layers[-1].drop_path(torch.ones(20_000, 3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropped[:, 0], dropped[:, 2]), "a branch is dropped for a whole sample"


def test_activation_dropout_drops_hidden_units_and_keeps_the_mean() -> None:
    layer = TransformerLayer(8, 2, 400, activation="relu", activation_dropout=0.25)
    mlp = layer.mlp.train()
    nn.init.constant_(mlp.fc1.bias, 5.0)  # no unit is cut by the relu
    mlp.fc2 = nn.Identity()
    x = torch.randn(6, 8)
    hidden = mlp.fc1(x).relu()
    out = mlp(x)
    kept = out != 0
    torch.testing.assert_close(out[kept], hidden[kept] / 0.75)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.05)
    assert torch.equal(mlp.eval()(x), hidden)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("branch", ["attn", "cross", "mlp"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_each_residual_branch_has_its_dropout(norm: str, branch: str, packed: bool) -> None:
    """With the other branches silent and no norms a layer adds its branch, of which dropout leaves some, scaled."""
    stack = (PackedTransformer if packed else Transformer)(1, 64, 2, 32, norm=norm, dropout=0.25, cross_dim=64)
    layer = stack.layers[0]
    for name in ("norm1", "norm_cross", "norm2"):
        setattr(layer, name, nn.Identity())
    for name, last in {"attn": layer.attn.out, "cross": layer.cross.out, "mlp": layer.mlp.fc2}.items():
        if name != branch:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    x, context = torch.randn(4, 9, 64), torch.randn(4, 5, 64)

    def added() -> torch.Tensor:
        if not packed:
            return stack(x, context=context) - x
        whole, of_context = Packing(torch.ones(4, 9).bool()), Packing(torch.ones(4, 5).bool())
        rows = stack(whole.rows(x), layout=whole, context=of_context.rows(context), context_layout=of_context)
        return whole.padded(rows) - x

    expected, found = stack.eval() and added(), stack.train() and added()
    kept = found.abs() > 1e-6
    torch.testing.assert_close(found[kept], expected[kept] / 0.75, atol=1e-4, rtol=1e-4)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.05)


def test_patches_and_tubelets_equal_strided_convolutions() -> None:
    patch, image = PatchEmbed(4, 3, 6), torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(patch(image), patch.proj(image).flatten(2).transpose(1, 2), atol=1e-6, rtol=0)
    tubelet, video = TubeletEmbed((2, 4, 4), 3, 6), torch.randn(2, 3, 4, 8, 12)
    torch.testing.assert_close(tubelet(video), tubelet.proj(video).flatten(2).transpose(1, 2), atol=1e-6, rtol=0)
    subset = tubelet.cubes(video)[:, [3, 1]]
    torch.testing.assert_close(tubelet.project(subset), tubelet(video)[:, [3, 1]], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="not a multiple of patch size"):
        patch(torch.randn(1, 3, 8, 9))


def test_sincos_positions_have_their_closed_form() -> None:
    table = sincos_1d(50, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert float(table[7, 2]) == pytest.approx(math.sin(7 / 10000 ** (2 / 6)), abs=1e-6)
    assert float(table[7, 5]) == pytest.approx(math.cos(7 / 10000 ** (4 / 6)), abs=1e-6)


def test_random_masks_are_exact_and_uniform_and_tokens_go_back_where_they_were() -> None:
    mask = random_mask(4000, 8, 3)
    assert (mask.sum(1) == 3).all()
    assert mask.float().mean(0) == pytest.approx(torch.full((8,), 3 / 8), abs=0.03)
    assert len({tuple(row) for row in mask[:500].int().tolist()}) == math.comb(8, 3)
    x, keep = torch.randn(5, 8, 2), ~mask[:5]
    kept = keep_tokens(x, keep)
    assert kept.shape == (5, 5, 2)
    back = put_tokens(kept, keep, fill=torch.tensor([7.0, 9.0]))
    assert torch.equal(back[keep], x[keep])
    assert torch.equal(back[~keep], torch.tensor([7.0, 9.0]).expand(15, 2))


def test_vit_equals_the_transformers_class(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    from benchmarks.speed.vit import HUB_CLASSIFIER

    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=5, layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
    )  # fmt: skip
    theirs = ViTForImageClassification(config).eval()
    ours = ViT(image_size=8, patch_size=4, dim=12, depth=2, num_heads=3, mlp_dim=24, num_classes=5).eval()
    theirs.save_pretrained(tmp_path)
    HUB_CLASSIFIER.load(ours, tmp_path)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=0)


def test_vit_base_has_its_published_size_and_cost() -> None:
    with torch.device("meta"):
        model, image = vit_base_patch16_224(), torch.empty(1, 3, 224, 224)
    assert parameter_count(model) == 86_567_656
    assert multiply_adds(model.tokens, image) == pytest.approx(17.56e9, rel=2e-3)
    assert multiply_adds(model, image) < 0.95 * 17.56e9


def test_multiply_adds_count_attention_on_the_cpu_as_on_meta() -> None:
    for device in ("cpu", "meta"):
        with torch.device(device):
            layer, x = Attention(8, 2), torch.randn(3, 5, 8, requires_grad=True)
        projections, products = 3 * 5 * 4 * 8 * 8, 2 * 3 * 5 * 5 * 8
        assert multiply_adds(layer, x) == projections + products
        with flop_counter() as counter:
            layer(x).sum().backward()
        # the backward of a product is two products; of attention, with the scores computed again or not, two or two
        # and a half
        assert counter.get_total_flops() in (6 * (projections + products), 6 * projections + 7 * products)
