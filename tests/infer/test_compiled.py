"""A compiled net: the masks of an uncompiled one, one static graph a size, what is said of the rest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.utils import counters

from unetfast.errors import UserError
from unetfast.infer.augmented import parse_tta
from unetfast.infer.compiled import StaticModel, record, static_sizes
from unetfast.infer.predict import predict

SaveModel = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_compiler(one_thread: None) -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def dynamo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces the net and runs the graph as it is: no C++ compiler is waited for."""
    compile_plainly = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: compile_plainly(self, backend="eager", **given))


class Channels(nn.Module):
    """Logits are the image's channels and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image_NCHW: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.shapes.append(tuple(image_NCHW.shape))
        return image_NCHW.float() * 2 + 1


def images(num: int, height: int, width: int, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8, generator=drawn).permute(0, 3, 1, 2)


def save_photos(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for place, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(place).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{place}.png")
    return folder


@pytest.mark.usefixtures("dynamo_alone")
def test_a_size_is_one_graph_whatever_the_number_of_images() -> None:
    net = Channels()
    static = StaticModel(net, device=CPU, batch_size=3, sizes_hw=[(4, 6)])
    with torch.no_grad():
        for num in (3, 1, 2, 3):
            batch = images(num, 4, 6, seed=num)
            assert torch.equal(static(batch), batch.float() * 2 + 1)
    assert counters["stats"]["unique_graphs"] == 1
    assert net.shapes == []
    assert static.num_uncompiled == 0


@pytest.mark.usefixtures("dynamo_alone")
def test_a_process_may_have_more_sizes_than_torch_allows_by_itself() -> None:
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=9), torch.no_grad():
        for width in range(4, 16):
            static = StaticModel(Channels(), device=CPU, batch_size=1, sizes_hw=[(4, width)])
            assert torch.equal(static(batch := images(1, 4, width)), batch.float() * 2 + 1)
    assert counters["stats"]["unique_graphs"] == 12


@pytest.mark.usefixtures("dynamo_alone")
def test_too_many_sizes_are_a_users_error() -> None:
    static = StaticModel(Channels(), device=CPU, batch_size=1, sizes_hw=[(4, width) for width in range(4, 8)])
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for width in (4, 5):
            static(images(1, 4, width))
        with pytest.raises(UserError, match=r"1 x 4x6 pixels \(this process has reached torch's limit.*leave --compile out"):
            static(images(1, 4, 6))


@pytest.mark.usefixtures("dynamo_alone")
def test_another_size_goes_through_the_net_as_it_is_and_is_counted() -> None:
    net = Channels()
    static = StaticModel(net, device=CPU, batch_size=2, sizes_hw=[(4, 6)])
    with torch.no_grad():
        for batch in (images(2, 4, 5), images(3, 4, 6)):
            assert torch.equal(static(batch), batch.float() * 2 + 1)
    assert net.shapes == [(2, 3, 4, 5), (3, 3, 4, 6)]
    assert static.num_uncompiled == 5
    assert counters["stats"]["unique_graphs"] == 0


def test_sizes_are_those_of_the_copies() -> None:
    assert static_sizes((32, 48), None) == [(32, 48)]
    assert static_sizes((32, 48), parse_tta("flips")) == [(32, 48)]
    assert static_sizes((100, 48), parse_tta("scales")) == [(76, 32), (100, 48), (124, 64)]


@pytest.mark.usefixtures("dynamo_alone")
@pytest.mark.parametrize(
    ("options", "num_graphs"),
    [({"batch_size": 3}, 1), ({"tta": "flips+scales"}, 3), ({"window": "32x48", "overlap": 0.0, "batch_size": 2}, 1)],
    ids=["whole", "tta", "windows"],
)
def test_masks_are_those_of_an_uncompiled_net(
    tmp_path: Path, save_tiny_model: SaveModel, options: dict[str, Any], num_graphs: int
) -> None:
    checkpoint = save_tiny_model()
    photos = save_photos(tmp_path / "in", (40, 60), (70, 50), (33, 90), (20, 30))
    for compiled, out in ((False, "plain"), (True, "compiled")):
        report = predict(checkpoint, photos, tmp_path / out, compiled=compiled, device="cpu", threads=1, **options)
        assert (report.num_done, report.failures) == (4, [])
    for place in range(4):
        assert (tmp_path / "plain" / f"{place}.png").read_bytes() == (tmp_path / "compiled" / f"{place}.png").read_bytes()
    assert counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.usefixtures("dynamo_alone")
def test_it_is_said_what_is_compiled_and_what_is_not(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    console = Console(file=(told := io.StringIO()), width=200)
    photos = save_photos(tmp_path / "in", (40, 60), (20, 30))  # the second one is smaller than a window
    predict(save_tiny_model(), photos, tmp_path / "out", compiled=True, window="32x48", device="cpu", console=console)
    assert "compile batches of 8, 32x48, kept in " in told.getvalue()
    assert "megapixels/s, compiling, reading and writing included" in told.getvalue()
    assert "note: 1 images or windows of another size went through the network as it is" in told.getvalue()


def test_a_compiler_that_fails_is_a_users_error(
    tmp_path: Path, save_tiny_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand more")

    compile_plainly = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: compile_plainly(self, backend=fail, **given))
    photos = save_photos(tmp_path / "in", (40, 60))
    told = r"--compile: torch cannot compile.*1 x 32x48 pixels \(RuntimeError: no C\+\+ compiler found\); leave --compile out"
    with pytest.raises(UserError, match=told):
        predict(save_tiny_model(), photos, tmp_path / "out", compiled=True, device="cpu")


@pytest.mark.slow
def test_masks_of_a_truly_compiled_net_are_the_same(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    checkpoint = save_tiny_model(model={"base_channels": 2, "depth": 1, "convs_per_block": 1})
    photos = save_photos(tmp_path / "in", (40, 60), (70, 50))
    for compiled, out in ((False, "plain"), (True, "compiled")):
        predict(checkpoint, photos, tmp_path / out, compiled=compiled, probs=True, device="cpu")
    assert counters["inductor"]["fxgraph_cache_hit"] + counters["inductor"]["fxgraph_cache_miss"] == 1
    for name in ("0", "1"):
        plain, compiled_KHW = (np.load(tmp_path / out / f"{name}_probs.npy") for out in ("plain", "compiled"))
        np.testing.assert_allclose(compiled_KHW, plain, atol=2e-3)
        clear_HW = np.abs(plain[0].astype(np.float32) - plain[1]) > 0.01
        masks = [np.asarray(Image.open(tmp_path / out / f"{name}.png")) for out in ("plain", "compiled")]
        np.testing.assert_array_equal(masks[0][clear_HW], masks[1][clear_HW])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_record_gives_the_numbers_of_each_call() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    place = torch.zeros(4, device=device)
    replay = record(lambda: place * 2 + 1, device)
    for value in (1.0, 5.0):
        place.fill_(value)
        assert replay().tolist() == [2 * value + 1] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_masks_from_a_cuda_graph_are_those_of_an_uncompiled_net(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    photos = save_photos(tmp_path / "in", (40, 60), (70, 50), (33, 90))
    checkpoint = save_tiny_model(model={"base_channels": 2, "depth": 1, "convs_per_block": 1})
    for compiled, out in ((False, "plain"), (True, "compiled")):
        predict(checkpoint, photos, tmp_path / out, compiled=compiled, probs=True, device="cuda", batch_size=2)
    for place in range(3):
        plain, compiled_KHW = (np.load(tmp_path / out / f"{place}_probs.npy") for out in ("plain", "compiled"))
        np.testing.assert_allclose(compiled_KHW, plain, atol=5e-3)
