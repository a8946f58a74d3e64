"""Layers over the rows of real tokens give what the padded computation gives there, forwards and backwards."""

import pytest
import torch

from common.errors import EncoreError
from common.fast.packed import PackedTransformer, Packing, pack
from common.layers import Transformer, key_padding_mask

RIGHT = torch.arange(7)[None] < torch.tensor([[7], [3], [5]])
LEFT = RIGHT.flip(1)
HOLES = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
WHOLE = torch.ones(3, 7, dtype=torch.bool)


def pair(**options):
    """The same weights, padded and packed."""
    torch.manual_seed(0)
    dense = Transformer(3, 24, 4, 48, **options).eval()
    packed = PackedTransformer(3, 24, 4, 48, **options).eval()
    packed.load_state_dict(dense.state_dict())
    return dense, packed


def both(valid, is_causal, **options):
    """(padded states at real tokens and input gradient, packed ones), with a loss that looks at real tokens alone."""
    dense, packed = pair(**options)
    x = torch.randn(3, 7, 24)
    context = torch.randn(3, 5, 24) if "cross_dim" in options else None
    seen = torch.arange(5)[None] < torch.tensor([[2], [5], [1]])
    target = torch.randn(int(valid.sum()), 24)
    found = []
    for blocks in (dense, packed):
        inputs = x.clone().requires_grad_()
        if blocks is dense:
            across = {} if context is None else {"context": context, "context_mask": key_padding_mask(seen)}
            mask = key_padding_mask(valid)
            if is_causal:  # padding may look at itself: what it computes is read by nobody
                mask = mask & torch.ones(7, 7, dtype=torch.bool).tril() | torch.eye(7, dtype=torch.bool)
            y = blocks(inputs, mask=mask, **across)[valid]
        else:
            layout = Packing(valid)
            across = {} if context is None else {"context": context[seen], "context_layout": Packing(seen)}
            y = blocks(layout.rows(inputs), layout=layout, is_causal=is_causal, **across)
        (y * target).sum().backward()
        found.append([y.detach(), inputs.grad, *(p.grad for p in blocks.parameters())])
    return found


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("valid", [RIGHT, LEFT, HOLES, WHOLE], ids=["right", "left", "holes", "whole"])
@pytest.mark.parametrize("cross", [{}, {"cross_dim": 24}], ids=["self", "cross"])
def test_rows_equal_the_padded_computation_and_so_do_gradients(valid, norm, is_causal, cross):
    dense, packed = both(valid, is_causal, norm=norm, **cross)
    for expected, got in zip(dense, packed, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_only_the_rows_that_are_read_are_given():
    _, packed = pair(norm="post")
    layout = Packing(RIGHT)
    rows = torch.randn(int(RIGHT.sum()), 24)
    read = torch.tensor([0, 8, 3])
    torch.testing.assert_close(packed(rows, layout=layout, read=read), packed(rows, layout=layout)[read])


def test_padding_is_not_computed():
    _, packed = pair()
    sizes = []
    packed.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    layout = Packing(RIGHT)
    packed(layout.rows(torch.randn(3, 7, 24)), layout=layout)
    assert sizes == [(15, 24)]


def test_without_a_layout_it_is_a_transformer():
    dense, packed = pair()
    x, mask = torch.randn(3, 7, 24), key_padding_mask(RIGHT)
    assert torch.equal(packed(x, mask=mask), dense(x, mask=mask))
    cache = packed.make_cache()
    parts = [packed(x[:, :4], is_causal=True, cache=cache), packed(x[:, 4:], is_causal=True, cache=cache)]
    torch.testing.assert_close(torch.cat(parts, 1), dense(x, is_causal=True), atol=1e-5, rtol=1e-5)


def test_attention_dropout_is_that_of_training_alone():
    _, packed = pair(attention_dropout=0.5)
    layout = Packing(RIGHT)
    rows = layout.rows(torch.randn(3, 7, 24))
    assert torch.equal(packed(rows, layout=layout), packed(rows, layout=layout))
    packed.train()
    assert not torch.equal(packed(rows, layout=layout), packed(rows, layout=layout))


def test_rows_and_padded_are_inverse_and_an_empty_sequence_is_an_error():
    x = torch.randn(3, 7, 2)
    layout = Packing(HOLES)
    assert torch.equal(layout.padded(layout.rows(x)), x * HOLES[..., None])
    assert Packing(WHOLE).mask is None
    assert Packing(WHOLE).rows(x).data_ptr() == x.data_ptr(), "without padding nothing is copied"
    with pytest.raises(EncoreError, match="sequence 1 of the batch has no real token"):
        Packing(torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("options", [{"drop_path": 0.1}, {"qkv_bias": "qv"}])
def test_what_rows_cannot_express_is_refused(options):
    with pytest.raises(ValueError, match="packed layers have neither"):
        PackedTransformer(2, 24, 4, 48, **options)
    with pytest.raises(ValueError, match="packed layers have neither"):
        pack(Transformer(2, 24, 4, 48, **options))


def test_a_transformer_is_packed_in_place():
    dense, packed = pair()
    names = list(dense.state_dict())
    pack(dense)
    rows, layout = torch.randn(int(RIGHT.sum()), 24), Packing(RIGHT)
    assert torch.equal(dense(rows, layout=layout), packed(rows, layout=layout))
    assert list(dense.state_dict()) == names
