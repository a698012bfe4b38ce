"""Operations with gradients of our own: the values, the gradients and the names of the parameters are torch's."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unetfast.model.cpu import TransposedConv, _Concatenate, concatenate
from unetfast.model.unet import UNet


def drawn(*shape: int, dtype: torch.dtype, last: bool = True) -> Tensor:
    values = torch.randn(*shape).to(dtype)
    return values.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def gradients(layer: nn.Module, input_NCHW: Tensor, grad_NCHW: Tensor, *, amp: bool) -> list[Tensor]:
    input_NCHW = input_NCHW.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        output_NCHW = layer(input_NCHW)
    output_NCHW.backward(grad_NCHW.to(output_NCHW.dtype))
    of_weights = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    assert input_NCHW.grad is not None
    return [output_NCHW.detach(), input_NCHW.grad, *of_weights]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("amp", [True, False])
def test_a_transposed_convolution_is_torchs(amp: bool, last: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.ConvTranspose2d(32, 16, 2, 2)
    ours = TransposedConv(32, 16, 2, 2)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    image_NCHW, grad_NCHW = (drawn(2, *shape, dtype=torch.float32, last=last) for shape in ((32, 12, 20), (16, 24, 40)))
    mine, expected = (gradients(layer, image_NCHW, grad_NCHW, amp=amp) for layer in (ours, theirs))
    assert len(mine) == 4
    for found, wanted in zip(mine[:3], expected[:3], strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    if not amp:
        assert torch.equal(mine[3], expected[3])
    exact_C = grad_NCHW.to(torch.bfloat16).double().sum(dim=(0, 2, 3))
    torch.testing.assert_close(mine[3].double(), exact_C, rtol=2**-8 if amp else 1e-2, atol=0.02)


def test_a_frozen_bias_or_input_gets_no_gradient() -> None:
    layer = TransposedConv(4, 2, 2, 2).to(torch.bfloat16)
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    layer(torch.ones(1, 4, 3, 3, dtype=torch.bfloat16)).sum().backward()
    assert layer.bias.grad is None
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_gradients_of_a_concatenation_are_torchs_and_dense(dtype: torch.dtype, last: bool) -> None:
    torch.manual_seed(0)
    skip_NCHW, up_NCHW = (drawn(2, num, 6, 8, dtype=dtype, last=last).requires_grad_() for num in (3, 5))
    grad_NCHW = drawn(2, 8, 6, 8, dtype=dtype, last=last)
    mine, theirs = concatenate(skip_NCHW, up_NCHW), torch.cat([skip_NCHW, up_NCHW], dim=1)
    assert torch.equal(mine, theirs)
    assert mine.stride() == theirs.stride()
    layout = torch.channels_last if last else torch.contiguous_format
    expected = torch.autograd.grad(theirs, (skip_NCHW, up_NCHW), grad_NCHW)
    for found, wanted in zip(torch.autograd.grad(mine, (skip_NCHW, up_NCHW), grad_NCHW), expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_concatenation_computes_the_gradients_that_are_wanted(wanted: tuple[bool, bool]) -> None:
    asked = SimpleNamespace(num_channels=1, needs_input_grad=wanted)
    found = _Concatenate.backward(asked, drawn(1, 3, 2, 4, dtype=torch.float32))
    assert [part is not None for part in found] == list(wanted)


def test_gradients_have_gradients() -> None:
    """A gradient penalty, which differentiates twice, gets what torch's own operations give it."""
    torch.manual_seed(0)
    theirs, ours = nn.ConvTranspose2d(3, 2, 2, 2).to(torch.bfloat16), TransposedConv(3, 2, 2, 2).to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    skip_NCHW, below_NCHW = (drawn(1, *shape, dtype=torch.bfloat16) for shape in ((2, 4, 6), (3, 2, 3)))
    penalties = []
    for layer, join in ((ours, concatenate), (theirs, lambda *parts: torch.cat(parts, dim=1))):
        start_NCHW = below_NCHW.clone().requires_grad_()
        score = join(skip_NCHW, layer(start_NCHW)).square().sum()
        (gradient_NCHW,) = torch.autograd.grad(score, start_NCHW, create_graph=True)
        gradient_NCHW.square().sum().backward()
        assert start_NCHW.grad is not None
        assert layer.weight.grad is not None
        penalties.append((start_NCHW.grad, layer.weight.grad))
    for found, expected in zip(*penalties, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)


def test_a_functional_gradient_is_torchs() -> None:
    layer = TransposedConv(3, 2, 2, 2).to(torch.bfloat16)
    start_NCHW = drawn(1, 3, 2, 3, dtype=torch.bfloat16)
    found = torch.func.grad(lambda image_NCHW: layer(image_NCHW).sum())(start_NCHW)
    again_NCHW = start_NCHW.clone().requires_grad_()
    layer(again_NCHW).sum().backward()
    assert again_NCHW.grad is not None
    assert torch.equal(found, again_NCHW.grad)


def test_without_gradients_there_is_nothing_of_ours_in_the_graph() -> None:
    layer = TransposedConv(4, 2, 2, 2).to(torch.bfloat16)
    with torch.no_grad():
        assert layer(torch.ones(1, 4, 3, 3, dtype=torch.bfloat16)).grad_fn is None
        assert concatenate(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2, 2)).shape == (1, 3, 2, 2)


def test_a_unet_still_loads_weights_by_torchs_names() -> None:
    net = UNet(2, base_channels=2, depth=1)
    assert {"decoder.0.up.weight", "decoder.0.up.bias"} <= set(net.state_dict())
    assert net.state_dict()["decoder.0.up.weight"].shape == (4, 2, 2, 2)
