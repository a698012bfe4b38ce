"""Test-time augmentation against the plain loop over copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.errors import UserError
from unetfast.infer.augmented import SCALES, AugmentedModel, Tta, build_augmented, parse_tta, scale_side
from unetfast.model.unet import UNet


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(3, base_channels=4, depth=2).eval()


@pytest.fixture
def image_NCHW() -> Tensor:
    return torch.randint(0, 256, (2, 3, 36, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_flips_are_the_mean_softmax_of_the_plain_loop(net: UNet, image_NCHW: Tensor) -> None:
    probs = [
        net(image_NCHW).softmax(1),
        net(image_NCHW[..., torch.arange(49, -1, -1)]).softmax(1)[..., torch.arange(49, -1, -1)],
        net(image_NCHW[:, :, torch.arange(35, -1, -1)]).softmax(1)[:, :, torch.arange(35, -1, -1)],
        net(torch.rot90(image_NCHW, 2, (2, 3))).softmax(1).rot90(2, (2, 3)),
    ]
    for flips, expected in (
        (((), (3,)), (probs[0] + probs[1]) / 2),
        (((), (3,), (2,), (2, 3)), sum(probs) / 4),
    ):
        log_mean = AugmentedModel(net, flips=flips)(image_NCHW)
        assert log_mean.dtype == torch.float32
        torch.testing.assert_close(log_mean.exp(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_mean.softmax(1), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(probs[0], probs[1], atol=1e-3), "the net is not symmetric, so a flip that is missed shows"


@torch.no_grad()
def test_scales_are_the_mean_softmax_of_resized_copies(net: UNet, image_NCHW: Tensor) -> None:
    sizes = [(26, 38), (36, 50), (44, 62)]  # 36 = 4 * 9 and 50 = 2 * 25 keep their factors 4 and 2
    assert [(scale_side(36, scale), scale_side(50, scale)) for scale in SCALES] == [(28, 38), (36, 50), (44, 62)]
    sizes[0] = (28, 38)
    expected = torch.zeros(2, 3, 36, 50)
    for size in sizes:
        copy = F.interpolate(image_NCHW.float(), size=size, mode="bilinear", antialias=True).round().to(torch.uint8)
        logits = net(copy if size != (36, 50) else image_NCHW)
        expected += F.interpolate(logits, size=(36, 50), mode="bilinear").softmax(1) / 3
    log_mean = AugmentedModel(net, flips=((),), scales=SCALES)(image_NCHW)
    torch.testing.assert_close(log_mean.exp(), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_one_copy_is_the_log_softmax(net: UNet, image_NCHW: Tensor) -> None:
    log_mean = AugmentedModel(net, flips=((),), scales=(1.0,))(image_NCHW)
    torch.testing.assert_close(log_mean, net(image_NCHW).log_softmax(1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_class_without_any_probability_stays_finite() -> None:
    class Sure(nn.Module):
        def forward(self, image_NCHW: Tensor) -> Tensor:
            num, _, height, width = image_NCHW.shape
            return torch.tensor([0.0, 900.0])[None, :, None, None].expand(num, 2, height, width)

    log_mean = AugmentedModel(Sure())(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert torch.isfinite(log_mean).all()
    assert bool((log_mean.argmax(1) == 1).all())


@torch.no_grad()
def test_a_symmetric_image_is_answered_symmetrically(net: UNet, image_NCHW: Tensor) -> None:
    mirrored = torch.cat([image_NCHW, image_NCHW.flip(3)], dim=3)
    log_mean = AugmentedModel(net, flips=((), (3,)))(mirrored)
    torch.testing.assert_close(log_mean, log_mean.flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(160, 0.75, 128), (160, 1.25, 192), (240, 0.75, 176), (7, 0.75, 5), (1, 0.1, 1)]
)
def test_copies_keep_the_divisor_of_the_side(side: int, scale: float, expected: int) -> None:
    assert scale_side(side, scale) == expected


def test_parsing() -> None:
    assert parse_tta("none") is None
    assert parse_tta("flips") == Tta(flips=((), (3,)))
    assert parse_tta("flips", vertical=True) == Tta(flips=((), (3,), (2,), (2, 3)))
    assert parse_tta("scales") == Tta(scales=SCALES)
    both = parse_tta("flips+scales", vertical=True)
    assert both is not None
    assert both.num_copies == 12
    assert both.describe() == "mean of 12 copies: flips as it is, left-right, top-bottom, both; scales 0.75, 1, 1.25"
    with pytest.raises(UserError, match=r"--tta turns: give one of none, flips, scales, flips\+scales"):
        parse_tta("turns")


def test_nothing_to_augment_is_the_net_itself(net: UNet) -> None:
    assert build_augmented(net, None) is net
    assert not build_augmented(net, parse_tta("flips")).training


def test_messages(net: UNet) -> None:
    with pytest.raises(ValueError, match="no flip or no scale"):
        AugmentedModel(net, flips=())
    with pytest.raises(ValueError, match=r"flips = \[\(1,\)\]: give axes 2 .* and 3"):
        AugmentedModel(net, flips=((1,),))
    with pytest.raises(ValueError, match="must be above 0"):
        AugmentedModel(net, scales=(0.0,))
