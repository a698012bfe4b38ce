"""What may be done to a prediction after the net: `--post crf,islands:64,holes:64`.

Axis legend: K classes, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from unetfast.errors import UserError
from unetfast.infer.post.crf import CrfOptions, refine
from unetfast.infer.post.regions import fill_holes, remove_islands

WHAT_THERE_IS = (
    "there are crf (with settings: crf:iterations=5:xy=80:rgb=13:compat=10:smooth_xy=3:smooth_compat=3), islands:PIXELS and "
    "holes:PIXELS (each also islands:PIXELS:CLASS), joined by commas, such as crf,islands:64,holes:64"
)


@dataclass(frozen=True, slots=True)
class _Regions:
    """Islands below a size removed, or holes below a size filled."""

    kind: str
    num_px: int
    class_id: int | None

    def __call__(self, pred_HW: np.ndarray) -> np.ndarray:
        change = remove_islands if self.kind == "islands" else fill_holes
        return change(pred_HW, self.num_px, None if self.class_id is None else [self.class_id])


@dataclass(frozen=True, slots=True)
class PostProcess:
    """Steps from class probabilities to class ids.

    Args:
        text: as it was written.
        crf: parameters of the refinement; None: without.
        steps: what is done to the class ids, in order.
    """

    text: str
    crf: CrfOptions | None
    steps: tuple[_Regions, ...]

    def __call__(self, rgb_HWC: np.ndarray, probs_KHW: np.ndarray) -> np.ndarray:
        """Decide the class of each pixel.

        Args:
            rgb_HWC: the image, uint8.
            probs_KHW: float32, summing to 1 over K, at the image's size.

        Returns:
            Class ids, uint8 (uint16 past 256 classes), (H, W).

        Raises:
            UserError: a kernel of the refinement is too narrow for the image.
        """
        if self.crf is not None:
            try:
                probs_KHW = refine(rgb_HWC, probs_KHW, self.crf)
            except ValueError as error:
                raise UserError(f"--post {self.text}: {error} (crf:xy=...:rgb=...)") from None
        pred_HW: np.ndarray = probs_KHW.argmax(axis=0).astype(np.uint8 if len(probs_KHW) <= 256 else np.uint16)
        for step in self.steps:
            pred_HW = step(pred_HW)
        return pred_HW


def parse_post(text: str, class_names: Sequence[str] = ()) -> PostProcess | None:
    """Read the text of `--post`.

    Args:
        text: such as "crf:iterations=10,islands:64,holes:500:car"; "" or "none" for nothing.
        class_names: in the order of class ids; a class may be named in the text by its name or its id.

    Returns:
        The steps; None for nothing.

    Raises:
        UserError: it cannot be understood; lists what there is.
    """
    if text.strip() in ("", "none"):
        return None
    crf: CrfOptions | None = None
    steps: list[_Regions] = []
    for part in text.split(","):
        name, *settings = (word.strip() for word in part.split(":"))
        if name == "crf":
            if crf is not None or steps:
                raise UserError(f"--post {text}: crf works on probabilities, so it stands once and first; {WHAT_THERE_IS}")
            crf = _parse_crf(text, settings)
        elif name in ("islands", "holes"):
            steps.append(_parse_regions(text, name, settings, class_names))
        else:
            raise UserError(f"--post {text}: no step is called {name!r}; {WHAT_THERE_IS}")
    return PostProcess(text, crf, tuple(steps))


def _parse_crf(text: str, settings: Sequence[str]) -> CrfOptions:
    known = {field.name for field in fields(CrfOptions)}
    values: dict[str, float] = {}
    for setting in settings:
        name, equals, number = (word.strip() for word in setting.partition("="))
        if not equals or name not in known:
            raise UserError(f"--post {text}: crf takes no setting {setting!r}; {WHAT_THERE_IS}")
        try:
            values[name] = float(number)
        except ValueError:
            raise UserError(f"--post {text}: {name} is {number!r}, not a number; {WHAT_THERE_IS}") from None
        is_weight = name.endswith("compat")
        if not (0 if is_weight else 1e-3) <= values[name] < float("inf"):
            raise UserError(f"--post {text}: {name} must be {'0 or more' if is_weight else 'above 0'}; {WHAT_THERE_IS}")
    iterations = values.pop("iterations", float(CrfOptions().iterations))
    if iterations < 1 or iterations != int(iterations):
        raise UserError(f"--post {text}: iterations must be a whole number of 1 or more; {WHAT_THERE_IS}")
    return CrfOptions(iterations=int(iterations), **values)


def _parse_regions(text: str, name: str, settings: Sequence[str], class_names: Sequence[str]) -> _Regions:
    number, *rest = settings or [""]
    if not number.isdecimal() or int(number) == 0 or len(rest) > 1:
        raise UserError(f"--post {text}: {name} wants a number of pixels, such as {name}:64; {WHAT_THERE_IS}")
    if not rest:
        return _Regions(name, int(number), None)
    if rest[0] in class_names:
        return _Regions(name, int(number), list(class_names).index(rest[0]))
    if rest[0].isdecimal() and int(rest[0]) < len(class_names):
        return _Regions(name, int(number), int(rest[0]))
    shown = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
    raise UserError(f"--post {text}: no class is called {rest[0]!r}; the classes are {shown} (or their ids)")
