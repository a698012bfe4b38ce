"""Images are read ahead on threads, in order, while all that are held stay below a number of pixels.

Each thread asks for room when it knows an image's size from its header, and before memory is taken. Room is given in the order
of the images; one that is larger than all the room there is gets it alone. So a folder of huge scans needs the memory of one.

Axis legend: H height, W width, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from unetfast.data.image import TooLargeError, load_image
from unetfast.errors import BadSampleError
from unetfast.infer.inputs import ImageInput
from unetfast.loader.plainresize import resize_by_libraries

MIN_ROOM_PIXELS = 2**27
ROOM_PIXELS_PER_THREAD = 2**25
_LARGE_FILE_BYTES = 2**25  # read only when nothing else is held


@dataclass(frozen=True, slots=True)
class Unread:
    """An image that could not be read, and why."""

    image: ImageInput
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that was read.

    Args:
        image: which one.
        size_hw: its own height and width, pixels.
        small_HWC: resized for the net, uint8; None where windows are cut from the whole.
        whole_HWC: its own pixels, uint8, where they are needed later on.
    """

    image: ImageInput
    size_hw: tuple[int, int]
    small_HWC: np.ndarray | None
    whole_HWC: np.ndarray | None

    @property
    def num_pixels(self) -> int:
        return self.size_hw[0] * self.size_hw[1]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How images are read.

    Args:
        exif: see `load_image`.
        max_pixels: larger images fail.
        small_hw: height and width to resize each image to; None does not.
        keep_whole: keep the image's own pixels.
    """

    exif: str
    max_pixels: int
    small_hw: tuple[int, int] | None
    keep_whole: bool


class _ClosedError(Exception):
    """Nobody waits for this image any more."""


class ReadAhead:
    """Yields batches of images that were read, in order. A context manager: on leaving it, its threads end.

    Args:
        images: what to read.
        options: how.
        batch_size: images a batch; fewer where the next one finds no room beside those of the batch.
        num_threads: that read.
        room_pixels: to be held at once; None takes what suits the number of threads.
    """

    def __init__(
        self,
        images: Sequence[ImageInput],
        options: ReadOptions,
        *,
        batch_size: int,
        num_threads: int,
        room_pixels: int | None = None,
    ) -> None:
        self._images = images
        self._options = options
        self._batch_size = batch_size
        self._num_ahead = batch_size + num_threads
        self._room = room_pixels or max(MIN_ROOM_PIXELS, num_threads * ROOM_PIXELS_PER_THREAD)
        self._threads = ThreadPoolExecutor(num_threads, "read")
        self._changed = threading.Condition()
        # all below is read and changed under that lock
        self._results: dict[int, Prepared | Unread | BaseException] = {}
        self._held_pixels = 0
        self._turn = 0  # the image that may ask for room
        self._passed: set[int] = set()  # images after it that will not ask any more
        self._no_room = False  # it has asked, and waits
        self._closed = False

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[list[Prepared | Unread]]:
        """Yield batches; whoever takes one must `release` the images in it that hold their own pixels."""
        submitted = taken = 0
        while taken < len(self._images):
            batch: list[Prepared | Unread] = []
            while len(batch) < self._batch_size and taken < len(self._images):
                for place in range(submitted, min(taken + self._num_ahead, len(self._images))):
                    self._threads.submit(self._read, place)
                    submitted = place + 1
                result = self._wait_for(taken, patient=not batch)
                if result is None:
                    break
                batch.append(result)
                taken += 1
            yield batch

    def release(self, prepared: Prepared) -> None:
        """Tell that an image's own pixels are not needed any more."""
        if prepared.whole_HWC is not None:
            self._give_back(prepared.num_pixels)

    def _wait_for(self, place: int, *, patient: bool) -> Prepared | Unread | None:
        """Wait for an image; None if it does not get room before others are released, and there is something else to do."""
        with self._changed:
            self._changed.wait_for(lambda: place in self._results or (not patient and self._no_room and self._turn == place))
            result = self._results.pop(place, None)
        if isinstance(result, BaseException):
            raise result
        return result

    def _read(self, place: int) -> None:
        result: Prepared | Unread | BaseException
        try:
            result = self._prepare(place)
        except BaseException as error:
            result = error
        with self._changed:
            self._results[place] = result
            self._pass_turn(place)  # it may have failed before it asked

    def _prepare(self, place: int) -> Prepared | Unread:
        image, options = self._images[place], self._options
        held = 0

        def take(num_pixels: int) -> None:
            nonlocal held
            self._take(place, num_pixels)
            held = num_pixels

        try:
            if image.path.stat().st_size > _LARGE_FILE_BYTES:
                self._wait_alone(place)
            loaded = load_image(
                image.path, file=str(image.path), exif=options.exif, max_pixels=options.max_pixels, on_header=take
            )
            rgb_HWC = np.require(loaded.rgb_HWC, requirements=["C", "W"])  # torch takes no read-only memory
            height, width = rgb_HWC.shape[:2]
            small_HWC = None
            if options.small_hw is not None:
                small_HWC = np.empty((*options.small_hw, 3), dtype=np.uint8)
                resize_by_libraries(rgb_HWC, np.array([0.0, 0.0, height, width]), small_HWC)
            prepared = Prepared(image, (height, width), small_HWC, rgb_HWC if options.keep_whole else None)
        except (OSError, BadSampleError, MemoryError) as error:
            if held:
                self._give_back(held)
            return Unread(image, _say(error))
        if not options.keep_whole:
            self._give_back(held)
        return prepared

    def _take(self, place: int, num_pixels: int) -> None:
        with self._changed:
            self._wait_turn(place, lambda: self._held_pixels == 0 or self._held_pixels + num_pixels <= self._room)
            self._held_pixels += num_pixels
            self._pass_turn(place)

    def _wait_alone(self, place: int) -> None:
        with self._changed:
            self._wait_turn(place, lambda: self._held_pixels == 0)

    def _wait_turn(self, place: int, has_room: Callable[[], bool]) -> None:
        """Wait, under the lock, until it is this image's turn and there is room."""
        self._changed.wait_for(lambda: self._closed or self._turn == place)
        while not self._closed and not has_room():
            self._no_room = True
            self._changed.notify_all()
            self._changed.wait()
        self._no_room = False
        if self._closed:
            raise _ClosedError

    def _pass_turn(self, place: int) -> None:
        if place >= self._turn:
            self._passed.add(place)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()

    def _give_back(self, num_pixels: int) -> None:
        with self._changed:
            self._held_pixels -= num_pixels
            self._changed.notify_all()


def _say(error: OSError | BadSampleError | MemoryError) -> str:
    if isinstance(error, TooLargeError):
        raised = f"; --max-pixels {error.num_pixels} allows it" if error.num_pixels else "; --max-pixels N raises it"
        return error.reason + raised
    if isinstance(error, BadSampleError):
        return error.reason  # the remedies of a bad sample speak of packing
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return "does not fit into memory"
