"""Reading ahead: in order, within the room there is, and never waiting for itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetfast.data.image import DEFAULT_MAX_PIXELS
from unetfast.infer import reading
from unetfast.infer.inputs import ImageInput
from unetfast.infer.reading import Prepared, ReadAhead, ReadOptions, Unread


def save_images(folder: Path, sizes: list[tuple[int, int]]) -> list[ImageInput]:
    folder.mkdir(exist_ok=True)
    images = []
    for place, (height, width) in enumerate(sizes):
        path = folder / f"{place:02d}.png"
        Image.fromarray(np.full((height, width, 3), place, dtype=np.uint8)).save(path)
        images.append(ImageInput(path, path.stem))
    return images


def options(
    *, keep_whole: bool, small_hw: tuple[int, int] | None = (4, 6), max_pixels: int = DEFAULT_MAX_PIXELS
) -> ReadOptions:
    return ReadOptions(exif="apply", max_pixels=max_pixels, small_hw=small_hw, keep_whole=keep_whole)


class Watch:
    """Notes how many pixels are held at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        take = ReadAhead._take

        def watched(ahead: ReadAhead, place: int, num_pixels: int) -> None:
            take(ahead, place, num_pixels)
            self.most = max(self.most, ahead._held_pixels)

        monkeypatch.setattr(ReadAhead, "_take", watched)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("keep_whole", [False, True])
def test_images_come_in_order_within_their_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int, keep_whole: bool
) -> None:
    sizes = [(10, 10), (30, 30), (10, 10), (50, 50), (10, 20), (10, 10), (20, 20), (10, 10), (10, 10), (10, 10)]
    images = save_images(tmp_path, sizes)
    images[4].path.write_bytes(b"no image")
    watch = Watch(monkeypatch)
    seen: list[str] = []
    with ReadAhead(images, options(keep_whole=keep_whole), batch_size=4, num_threads=num_threads, room_pixels=1000) as ahead:
        for batch in ahead:
            assert 1 <= len(batch) <= 4
            for result in batch:
                seen.append(result.image.name)
                if isinstance(result, Unread):
                    assert result.image.name == "04"
                    continue
                assert (result.small_HWC == int(result.image.name)).all()  # type: ignore[union-attr]
                assert (result.whole_HWC is not None) == keep_whole
                assert result.size_hw == sizes[int(result.image.name)]
            for result in batch:
                if isinstance(result, Prepared):
                    ahead.release(result)
        assert ahead._held_pixels == 0
    assert seen == [image.name for image in images]
    assert watch.most <= 2500, "the largest one alone, else 1000"


def test_a_batch_is_cut_short_rather_than_waiting_for_itself(tmp_path: Path) -> None:
    images = save_images(tmp_path, [(30, 30)] * 5)
    sizes = []
    with ReadAhead(images, options(keep_whole=True), batch_size=4, num_threads=2, room_pixels=2000) as ahead:
        for batch in ahead:
            sizes.append(len(batch))
            for result in batch:
                assert isinstance(result, Prepared)
                ahead.release(result)
    assert sum(sizes) == 5
    assert max(sizes) <= 2


def test_large_files_are_read_when_nothing_else_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGE_FILE_BYTES", 0)
    images = save_images(tmp_path, [(10, 10)] * 4)
    watch = Watch(monkeypatch)
    with ReadAhead(images, options(keep_whole=True), batch_size=3, num_threads=3) as ahead:
        for batch in ahead:
            for result in batch:
                assert isinstance(result, Prepared)
                ahead.release(result)
    assert watch.most == 100


def test_leaving_early_ends_the_threads(tmp_path: Path) -> None:
    images = save_images(tmp_path, [(30, 30)] * 8)
    before = set(threading.enumerate())
    with ReadAhead(images, options(keep_whole=True), batch_size=1, num_threads=3, room_pixels=1000) as ahead:
        next(iter(ahead))  # the others wait for room that never comes
    assert set(threading.enumerate()) <= before


def test_what_is_no_image_is_said_and_bugs_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = save_images(tmp_path, [(10, 30), (10, 10)])
    missing = ImageInput(tmp_path / "gone.png", "gone")
    with ReadAhead([*images, missing], options(keep_whole=False, max_pixels=200), batch_size=3, num_threads=2) as ahead:
        large, _, gone = next(iter(ahead))
    assert isinstance(large, Unread)
    assert large.reason == "has 30x10 pixels, the limit is 200 pixels; --max-pixels 300 allows it"
    assert isinstance(gone, Unread)
    assert gone.reason == "cannot be read (No such file or directory)"

    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reading, "load_image", break_down)
    with ReadAhead(images, options(keep_whole=False), batch_size=1, num_threads=1) as ahead, pytest.raises(ZeroDivisionError):
        next(iter(ahead))

    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "load_image", run_out)
    with ReadAhead(images, options(keep_whole=False), batch_size=1, num_threads=1) as ahead:
        assert next(iter(ahead)) == [Unread(images[0], "does not fit into memory")]
