"""Blended logits against whole arrays in numpy; the bound of the buffer; what a net of small reach must give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unetfast.infer import tiling
from unetfast.infer.tiling import choose_batch_size, count_windows, cut_panels, iter_blocks
from unetfast.infer.window import Grid, Windows, lay_grid
from unetfast.model.unet import UNet

CPU = torch.device("cpu")
K = 3


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_image(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(noise_image(6, 7)).resize((width, height), Image.Resampling.BICUBIC))


def positional_model(image_NHWC: np.ndarray) -> Tensor:
    """Answers differ by place in the window and by content, so that neither weights nor places may be wrong."""
    image = torch.from_numpy(np.array(image_NHWC)).permute(0, 3, 1, 2).float() / 255
    height, width = image.shape[2:]
    rows = torch.linspace(-2, 3, height)[:, None] if height > 1 else torch.zeros(1, 1)
    columns = torch.linspace(1, -4, width)[None, :] if width > 1 else torch.zeros(1, 1)
    return image * 5 + torch.stack([rows + columns, rows * columns, (rows - columns) ** 2])


def predict_whole(rgb_HWC: np.ndarray, grid: Grid, run_model=positional_model, **options: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Put all blocks together, and prove that they cover each pixel once."""
    height, width = rgb_HWC.shape[:2]
    logits_KHW = np.full((K, height, width), np.nan, dtype=np.float32)
    times_HW = np.zeros((height, width), dtype=int)
    for block in iter_blocks(rgb_HWC, grid, run_model, num_classes=K, device=CPU, **options):
        part = (
            slice(block.top, block.top + block.logits_KHW.shape[1]),
            slice(block.left, block.left + block.logits_KHW.shape[2]),
        )
        times_HW[part] += 1
        logits_KHW[:, *part] = block.logits_KHW.numpy()
    assert (times_HW == 1).all()
    return logits_KHW


def plain_blend(rgb_HWC: np.ndarray, window_hw: tuple[int, int], starts: list[tuple[int, int]]) -> np.ndarray:
    """The definition, on whole arrays: sum of Gaussian-weighted logits over the sum of the weights."""
    height, width = rgb_HWC.shape[:2]
    bells = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in window_hw]
    weight_HW = np.outer(*bells)
    total_KHW, weights_HW = np.zeros((K, height, width)), np.zeros((height, width))
    for top, left in starts:
        part = (slice(top, top + window_hw[0]), slice(left, left + window_hw[1]))
        total_KHW[:, *part] += weight_HW * positional_model(rgb_HWC[part][None])[0].numpy()
        weights_HW[part] += weight_HW
    return total_KHW / weights_HW


@settings(max_examples=60, deadline=None)
@given(
    size_hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    window_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    buffer_columns=st.integers(1, 90),
    block_rows=st.integers(1, 9),
    batch_size=st.integers(1, 5),
)
def test_blocks_are_the_plain_blend_wherever_panels_blocks_and_batches_are_cut(
    size_hw: tuple[int, int],
    window_hw: tuple[int, int],
    overlap: float,
    buffer_columns: int,
    block_rows: int,
    batch_size: int,
) -> None:
    rgb_HWC = noise_image(*size_hw)
    grid = lay_grid(size_hw, Windows(window_hw, overlap))
    starts = [(top, left) for top in grid.tops for left in grid.lefts]
    found = predict_whole(
        rgb_HWC,
        grid,
        batch_size=batch_size,
        buffer_bytes=4 * K * grid.window_hw[0] * buffer_columns,
        block_bytes=4 * K * size_hw[1] * block_rows,
    )
    np.testing.assert_allclose(found, plain_blend(rgb_HWC, grid.window_hw, starts), rtol=1e-5, atol=1e-5)


def test_one_window_over_the_image_is_the_net_itself_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = UNet(K, base_channels=4, depth=2).eval()
    rgb_HWC = smooth_image(37, 50)

    def run_model(image_NHWC: np.ndarray) -> Tensor:
        with torch.no_grad():
            return model(torch.from_numpy(np.array(image_NHWC)).permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    found = predict_whole(rgb_HWC, lay_grid((37, 50), Windows((64, 64))), run_model)
    np.testing.assert_array_equal(found, run_model(rgb_HWC[None])[0].numpy())


def test_a_net_of_small_reach_is_the_same_in_windows_as_on_the_whole_image() -> None:
    """Fully convolutional consistency: away from a window's borders both see the same pixels, and borders weigh little."""
    torch.manual_seed(1)
    convs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, K, 3, padding=1)
    ).eval()

    def run_model(image_NHWC: np.ndarray) -> Tensor:
        with torch.no_grad():
            return convs(torch.from_numpy(np.array(image_NHWC)).permute(0, 3, 1, 2).float() / 255)  # type: ignore[no-any-return]

    rgb_HWC = noise_image(200, 300)
    found = predict_whole(rgb_HWC, lay_grid((200, 300), Windows((64, 64))), run_model, buffer_bytes=4 * K * 64 * 101)
    whole = run_model(rgb_HWC[None])[0].numpy()
    assert np.abs(found - whole).max() < 0.01, (
        "a border that is wrong by padding weighs exp(-8) of the window that sees it whole"
    )
    assert np.abs(whole).max() > 0.3


@settings(max_examples=25, deadline=None)
@given(
    size_hw=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    scale=st.sampled_from([0.3, 0.5, 0.77, 1.4, 2.0]),
    buffer_columns=st.integers(3, 70),
    block_rows=st.integers(1, 9),
)
def test_at_another_scale_the_blend_of_the_resized_image_is_resized_back(
    size_hw: tuple[int, int], scale: float, buffer_columns: int, block_rows: int
) -> None:
    rgb_HWC = noise_image(*size_hw)
    grid = lay_grid(size_hw, Windows((16, 20), 0.5, scale))
    height, width = grid.scaled_hw
    scaled_HWC = np.asarray(Image.fromarray(rgb_HWC).resize((width, height), Image.Resampling.BILINEAR))
    starts = [(top, left) for top in grid.tops for left in grid.lefts]
    blend = torch.from_numpy(plain_blend(scaled_HWC, grid.window_hw, starts).astype(np.float32))
    expected = F.interpolate(blend[None], size=size_hw, mode="bilinear", align_corners=False)[0].numpy()
    found = predict_whole(
        rgb_HWC,
        grid,
        batch_size=3,
        buffer_bytes=4 * K * (grid.window_hw[0] + 1) * buffer_columns,
        block_bytes=4 * K * max(size_hw[1], width) * block_rows,
    )
    # a resized pixel may be one off between the two filters: 5 / 255 in a logit
    np.testing.assert_allclose(found, expected, atol=1.02 * 5 / 255)
    assert np.abs(found - expected).mean() < 0.3 * 5 / 255


def test_the_buffer_stays_below_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what is allocated for sums: 150 classes on a wide image would take 35 MB a row of windows, the bound is 2 MiB."""
    num_classes, size_hw = 150, (90, 1800)
    grid = lay_grid(size_hw, Windows((32, 32)))
    allocated: list[int] = []
    zeros = torch.zeros

    def counting_zeros(*shape: int, **options: object) -> Tensor:
        tensor: Tensor = zeros(*shape, **options)  # type: ignore[call-overload]
        allocated.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(tiling.torch, "zeros", counting_zeros)
    num_run = 0

    def run_model(image_NHWC: np.ndarray) -> Tensor:
        nonlocal num_run
        num_run += len(image_NHWC)
        return zeros(len(image_NHWC), num_classes, *image_NHWC.shape[1:3])

    largest_block = 0
    for block in iter_blocks(
        noise_image(*size_hw),
        grid,
        run_model,
        num_classes=num_classes,
        device=CPU,
        batch_size=4,
        buffer_bytes=2 * 2**20,
        block_bytes=2**19,
    ):
        largest_block = max(largest_block, block.logits_KHW.nbytes)
    panels = cut_panels(grid, num_classes, 2 * 2**20)
    assert len(allocated) == len(panels) > 10
    assert max(allocated) <= 2 * 2**20
    assert largest_block <= 2**19
    assert num_run == count_windows(grid, num_classes, 2 * 2**20)
    assert num_run < 1.6 * grid.num_windows, "windows at the edges of panels are run twice, the others once"


def test_progress_tells_every_window() -> None:
    grid = lay_grid((100, 120), Windows((32, 32)))
    told: list[int] = []
    for _ in iter_blocks(
        noise_image(100, 120), grid, positional_model, num_classes=K, device=CPU, batch_size=5, on_windows=told.append
    ):
        pass
    assert told[-1] == grid.num_windows == count_windows(grid, K)
    assert told == sorted(told)


def test_batches_of_windows_are_bounded() -> None:
    gpu = torch.device("cuda")
    assert choose_batch_size(8, (160, 240), 2, CPU) == 6
    assert choose_batch_size(8, (160, 240), 2, gpu) == 8
    assert choose_batch_size(2, (64, 64), 2, CPU) == 2
    assert choose_batch_size(64, (256, 256), 150, gpu) == 3  # 39 MB of logits each
    assert choose_batch_size(8, (4096, 4096), 150, CPU) == 1


def test_a_strip_of_a_scaled_image_is_cut_from_the_scaled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "_SOURCE_PIXELS", 500)  # so that even a small strip is made piece by piece
    rgb_HWC = smooth_image(90, 110)
    whole_HWC = np.asarray(Image.fromarray(rgb_HWC).resize((70, 41), Image.Resampling.BILINEAR))
    strip_HWC = tiling._cut_scaled(rgb_HWC, (41, 70), (5, 37), (11, 66))
    assert np.abs(strip_HWC.astype(int) - whole_HWC[5:37, 11:66]).max() <= 1
