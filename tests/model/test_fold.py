"""Folded batch norm: the same logits but for rounding, on every norm that can be folded and on no other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unetfast.model.fold import cast_convolutions, fold_batch_norm
from unetfast.model.unet import UNet


def trained_net(**options: object) -> UNet:
    """A net whose statistics, scales and shifts are those of no fresh one."""
    torch.manual_seed(0)
    net = UNet(3, base_channels=4, depth=2, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(-2, 2)
                norm.bias.normal_()
    return net.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize(
    ("options", "num_folded"),
    [
        ({}, 10),
        ({"block": "residual"}, 15),  # and those of the shortcuts
        ({"block": "separable"}, 1),  # of the convolution on the pixels
        ({"conv_order": "conv-act-norm"}, 0),
        ({"norm": "group"}, 0),
        ({"norm": "none"}, 0),
    ],
)
def test_logits_are_the_same_but_for_rounding(options: dict[str, str], num_folded: int) -> None:
    net = trained_net(**options)
    folded = copy.deepcopy(net)
    assert fold_batch_norm(folded) == num_folded
    image_NCHW = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = net(image_NCHW), folded(image_NCHW)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) == (
        sum(isinstance(part, nn.BatchNorm2d) for part in net.modules()) - num_folded
    )


class Tapped(nn.Sequential):
    """A Sequential that is none: it adds what comes out of its convolution to its result."""

    def forward(self, hidden_NCHW: torch.Tensor) -> torch.Tensor:
        conv, norm = self
        first_NCHW = conv(hidden_NCHW)
        return norm(first_NCHW) + first_NCHW  # type: ignore[no-any-return]


def test_parts_that_are_not_run_in_order_are_left_alone() -> None:
    assert fold_batch_norm(nn.Sequential(Tapped(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).eval()) == 0


def test_modules_with_hooks_are_left_alone() -> None:
    torch.manual_seed(0)
    hooked = nn.Conv2d(3, 4, 1)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    net = nn.Sequential(hooked, nn.BatchNorm2d(4), normalised, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).eval()
    folded = copy.deepcopy(net)
    image_NCHW = torch.rand(1, 3, 5, 5)
    assert fold_batch_norm(folded) == 1
    torch.testing.assert_close(folded(image_NCHW), net(image_NCHW))


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode alone"):
        fold_batch_norm(trained_net().train())


@pytest.mark.parametrize(("options", "num_cast"), [({}, 13), ({"norm": "group", "attention": True}, 19)])
def test_weights_cast_once_give_the_same_bits(options: dict[str, object], num_cast: int) -> None:
    net = trained_net(**options)
    cast = copy.deepcopy(net)
    assert cast_convolutions(cast, torch.bfloat16) == num_cast
    assert cast.decoder[0].up.weight.dtype == torch.bfloat16
    assert cast.decoder[0].up.weight.is_contiguous(memory_format=torch.channels_last)
    image_NCHW = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cast(image_NCHW), net(image_NCHW))


def test_weights_that_are_computed_anew_are_not_cast() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    assert cast_convolutions(nn.Sequential(conv, nn.Conv2d(4, 4, 3)), torch.bfloat16) == 1
    assert conv.weight.dtype == torch.float32
