"""Drawing with classes: a canvas that keeps picture and mask together, and a camera for solid bodies.

A scene is drawn at three times its size and reduced, so that its edges are smooth as in photographs; its mask is the same
polygons, each pixel's class taken at its centre. Numpy and Pillow alone: the same Pillow gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 3  # odd, so that every pixel has a centre sample
_LIGHT = np.array([-0.45, -0.55, 0.70])  # towards the lamp, in camera-turned world axes

Rng = np.random.Generator
Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Grain:
    """How much fine detail drawn pictures hold, and how JPEG keeps it: what decides the bytes of a file.

    Args:
        noise: standard deviation of the sensor's noise, in steps of 8 bits.
        texture: how far brightness goes up and down over surfaces, as a share of it.
        quality: of JPEG files, 1 to 95 as Pillow counts it.
        num_details: small things that lie about, each with an outline in the mask; of ade20k alone.
    """

    noise: float
    texture: float
    quality: int
    num_details: int = 0


class Canvas:
    """An RGB picture and its mask, drawn together at `SUPERSAMPLING` times their size.

    Args:
        size_hw: height and width of the finished picture, pixels.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.height, self.width = size_hw
        big = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self.picture = Image.new("RGB", big)
        self.mask = Image.new("L", big)
        self._draw = ImageDraw.Draw(self.picture)
        self._draw_mask = ImageDraw.Draw(self.mask)

    def polygon(self, points_xy: np.ndarray, color: Rgb, value: int | None) -> None:
        """Fill a polygon with a colour and a class id; None leaves the mask as it is. Points in finished pixels."""
        corners = [(float(x) * SUPERSAMPLING, float(y) * SUPERSAMPLING) for x, y in points_xy]
        self._draw.polygon(corners, fill=color)
        if value is not None:
            self._draw_mask.polygon(corners, fill=value)

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Rgb, value: int | None) -> None:
        self.polygon(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), color, value)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, color: Rgb, value: int | None) -> None:
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self.polygon(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1), color, value)

    def multiply(self, *factors_HW: np.ndarray) -> None:
        """Scale the brightness of what is drawn so far by float maps, each stretched over the picture."""
        product_HW = np.prod([_stretch(factor_HW, (self.width, self.height)) for factor_HW in factors_HW], axis=0)
        product_HW = product_HW.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1)
        pixels = np.asarray(self.picture) * product_HW[..., None].astype(np.float32)
        self.picture = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
        self._draw = ImageDraw.Draw(self.picture)

    def shade(self, points_xy: np.ndarray, strength: float, blur_px: float) -> None:
        """Darken a polygon with a soft edge, as a shadow does."""
        shadow = Image.new("L", (self.width, self.height))
        ImageDraw.Draw(shadow).polygon([(float(x), float(y)) for x, y in points_xy], fill=round(255 * strength))
        shadow = shadow.filter(ImageFilter.GaussianBlur(blur_px)).resize(self.picture.size)
        self.picture.paste((0, 0, 0), mask=shadow)

    def finish(self, rng: Rng, *, noise: float, light_HW: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reduce to the finished size, light the scene and add sensor noise.

        Args:
            rng: draws the noise.
            noise: its standard deviation, in steps of 8 bits.
            light_HW: small map of factors, stretched over the picture; None leaves the light as it is.

        Returns:
            Image, RGB uint8 (H, W, 3), and mask, class ids, uint8 (H, W).
        """
        pixels = np.asarray(self.picture.reduce(SUPERSAMPLING), dtype=np.float32)
        if light_HW is not None:
            pixels = pixels * _stretch(light_HW, (self.width, self.height))[..., None]
        pixels = pixels + rng.normal(0, noise, pixels.shape).astype(np.float32)
        middle = SUPERSAMPLING // 2
        mask_HW = np.asarray(self.mask)[middle::SUPERSAMPLING, middle::SUPERSAMPLING]
        return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), np.ascontiguousarray(mask_HW)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera that looks at the origin; world axes: x right, y away from the camera, z up.

    Args:
        turn: rotation of the world about z, radians.
        elevation: height of the camera over the ground, radians.
        distance: from camera to origin, world units.
        focal_px: focal length, pixels.
        center_xy: where the origin appears, pixels.
    """

    turn: float
    elevation: float
    distance: float
    focal_px: float
    center_xy: tuple[float, float]

    def rotate(self, points: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        return np.stack([x * cos - y * sin, x * sin + y * cos, z], axis=-1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Map world points (n, 3) to pixels (n, 2)."""
        turned = self.rotate(points)
        cos, sin = np.cos(self.elevation), np.sin(self.elevation)
        depth = self.distance + turned[:, 1] * cos - turned[:, 2] * sin
        up = turned[:, 1] * sin + turned[:, 2] * cos
        x, y = self.center_xy
        return np.stack([x + self.focal_px * turned[:, 0] / depth, y - self.focal_px * up / depth], axis=1)

    def sees(self, face: np.ndarray, inside: np.ndarray) -> tuple[bool, np.ndarray]:
        """Tell whether a flat face is turned to the camera; also its unit normal, pointing away from `inside`."""
        normal = np.cross(face[1] - face[0], face[2] - face[1])
        normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
        middle = face.mean(axis=0)
        if normal @ (middle - inside) < 0:
            normal = -normal
        turned = self.rotate(np.stack([normal, middle]))
        eye = self.distance * np.array([0.0, -np.cos(self.elevation), np.sin(self.elevation)])
        return bool(turned[0] @ (eye - turned[1]) > 0), turned[0]


def _stretch(values: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size_wh, Image.Resampling.BICUBIC))


def scale(color: Sequence[float] | np.ndarray, factor: float) -> Rgb:
    r, g, b = (int(min(255, max(0, channel * factor))) for channel in color)
    return r, g, b


def mix(color: Sequence[float], other: Sequence[float], share: float) -> Rgb:
    r, g, b = (int(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True))
    return r, g, b


def draw_prism(
    canvas: Canvas, camera: Camera, rings: tuple[np.ndarray, np.ndarray], color: Rgb, value: int
) -> list[np.ndarray]:
    """Draw a convex solid between two rings of points; return the faces seen: both caps first, then the strip."""
    first, second = rings
    count = len(first)
    strip = [np.stack([first[i], first[(i + 1) % count], second[(i + 1) % count], second[i]]) for i in range(count)]
    inside = (first.mean(axis=0) + second.mean(axis=0)) / 2
    seen = []
    for face in [first, second, *strip]:
        visible, normal = camera.sees(face, inside)
        if visible:
            light = 0.55 + 0.5 * max(0.0, float(normal @ _LIGHT))
            canvas.polygon(camera.project(face), scale(color, light), value)
            seen.append(face)
    return seen


def cut_patch(quad: np.ndarray, u: tuple[float, float], v: tuple[float, float]) -> np.ndarray:
    """Cut the piece u x v (shares of the sides) out of a four-cornered face."""
    a, b, c, d = quad
    return np.stack([(1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c) for s, t in
                     ((u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1]))])  # fmt: skip
