"""MLPs that keep less for the backward pass: same numbers and gradients, fewer bytes, no product computed twice."""

import copy
import weakref

import pytest
import torch

from common.fast.flops import flop_counter
from common.fast.lean import LeanMLP, keep_less
from common.layers import MLP, Transformer


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_tanh", "relu"])
def test_numbers_and_gradients_are_those_of_an_mlp(activation):
    torch.manual_seed(0)
    plain = Transformer(2, 16, 4, 64, activation=activation)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    assert [type(layer.mlp) for layer in lean.layers] == [LeanMLP] * 2
    x, target = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    outputs = []
    for model in (plain, lean):
        inputs = x.clone().requires_grad_()
        y = model(inputs)
        (y * target).sum().backward()
        outputs.append([y.detach(), inputs.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert list(plain.state_dict()) == list(lean.state_dict())


def test_dropout_is_the_same_in_the_second_computation():
    plain = MLP(8, 32, dropout=0.3, activation_dropout=0.5)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    gradients = []
    for model in (plain, lean):
        torch.manual_seed(3)
        model(torch.ones(4, 8)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_output_of_the_activation_is_not_kept():
    plain = MLP(16, 64)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    x = torch.randn(10, 16)
    alive = []
    for model in (plain, lean):
        outputs = []
        model.act.register_forward_hook(lambda *hook, outputs=outputs: outputs.append(weakref.ref(hook[2])))
        y = model(x)
        assert y.grad_fn is not None
        alive.append(outputs[0]() is not None)
    assert alive == [True, False]


def test_no_matrix_product_is_computed_twice():
    plain = MLP(16, 64)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    counts = []
    for model in (plain, lean):
        with flop_counter() as counter:
            model(torch.randn(10, 16, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
