"""Deep supervision: which logits, against which pixels of the mask, with which weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unetfast.model.deep import full_size, shrink_mask, supervised_loss
from unetfast.model.losses import SegmentationLoss
from unetfast.model.unet import UNet


def _image(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _net(**options: object) -> UNet:
    torch.manual_seed(0)
    return UNet(3, **{"base_channels": 4, "depth": 3, "deep_supervision": 0.5, **options})  # type: ignore[arg-type]


def test_training_gives_a_tensor_a_level_and_evaluation_one_tensor() -> None:
    net = _net()
    image = _image(2, 19, 33)
    sizes = [tuple(part.shape) for part in net(image)]
    assert sizes == [(2, 3, 19, 33), (2, 3, 10, 17), (2, 3, 5, 9)]
    logits = net.eval()(image)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 3, 19, 33)


def test_levels_of_the_same_size_are_scored_at_that_size() -> None:
    net = _net(down=["none", "maxpool", "strided"])
    assert [part.shape[-2:] for part in net(_image(2, 9, 14))] == [(9, 14), (9, 14), (5, 7)]


def test_auxiliary_heads_change_nothing_else() -> None:
    plain, deep = _net(deep_supervision=0.0).eval(), _net().eval()
    missing = deep.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["aux_heads.0.weight", "aux_heads.0.bias", "aux_heads.1.weight", "aux_heads.1.bias"]
    image = _image(2, 19, 33)
    assert torch.equal(plain(image), deep(image))
    assert torch.equal(plain.train()(image), full_size(deep.train()(image)))


def test_auxiliary_logits_are_a_1x1_convolution_of_their_level() -> None:
    net = _net()
    seen = []
    for level in net.decoder:
        level.register_forward_hook(lambda module, args, result: seen.append(result))
    outputs = net(_image(2, 16, 24))
    for logits, hidden, head in zip(outputs[1:], (seen[1], seen[0]), net.aux_heads, strict=True):
        torch.testing.assert_close(logits, F.conv2d(hidden, head.weight, head.bias))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
@pytest.mark.parametrize(("size", "stride"), [((16, 24), 2), ((16, 24), 8), ((17, 33), 2), ((17, 33), 4), ((1, 5), 4)])
def test_a_cell_takes_the_class_of_its_middle_pixel(dtype: torch.dtype, size: tuple[int, int], stride: int) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (2, *size))
    cells = [-(-side // stride) for side in size]
    expected = np.empty((2, *cells), np.int64)
    for row, column in np.ndindex(*cells):
        y, x = (min(place * stride + stride // 2, side - 1) for place, side in zip((row, column), size, strict=True))
        expected[:, row, column] = mask[:, y, x]
    got = shrink_mask(torch.from_numpy(mask).to(dtype), *cells)
    np.testing.assert_array_equal(got.numpy().astype(np.int64), expected)


def test_a_mask_of_the_same_size_is_itself() -> None:
    mask = torch.zeros(1, 7, 9, dtype=torch.uint16)
    assert shrink_mask(mask, 7, 9) is mask


@pytest.mark.parametrize("size", [(3, 8), (16, 5)])
def test_sizes_that_no_halving_gives_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no power of 2"):
        shrink_mask(torch.zeros(1, 16, 16, dtype=torch.uint8), *size)


def test_the_loss_is_the_weighted_mean_with_weights_halved_per_level() -> None:
    net = _net()
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 3, (2, 16, 24), generator=generator)
    mask[0, :5] = 255
    outputs = net(_image(2, 16, 24))
    loss = SegmentationLoss(num_classes=3, ignore_index=255, dice=1.0)
    parts = [loss(logits, mask[:, s // 2 :: s, s // 2 :: s]) for logits, s in zip(outputs, (1, 2, 4), strict=True)]
    expected = (parts[0] + 0.4 * parts[1] + 0.2 * parts[2]) / 1.6
    torch.testing.assert_close(supervised_loss(loss, outputs, mask, 0.4), expected)


def test_one_tensor_has_its_own_loss() -> None:
    loss = SegmentationLoss(num_classes=3, ignore_index=255)
    logits, mask = torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert torch.equal(supervised_loss(loss, logits, mask, 0.5), loss(logits, mask))
    assert full_size(logits) is logits


def test_an_unlabelled_batch_has_loss_0() -> None:
    net = _net()
    mask = torch.full((2, 16, 24), 255, dtype=torch.uint8)
    loss = supervised_loss(SegmentationLoss(num_classes=3, ignore_index=255), net(_image(2, 16, 24)), mask, 0.5)
    loss.backward()
    assert loss.item() == 0
