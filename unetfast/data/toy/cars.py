"""Toy Carvana: cars of several builds and paints, photographed all round in cluttered studios.

No single brightness or colour tells a car from its surroundings: boxes, posters and lamps are painted in the same colours,
and walls and floors go from dark to bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unetfast.data.toy.canvas import Camera, Canvas, Grain, Rgb, Rng, cut_patch, draw_prism, mix, scale

PAINTS: tuple[Rgb, ...] = (
    (236, 236, 232),
    (24, 24, 28),
    (168, 172, 178),
    (96, 100, 106),
    (150, 24, 28),
    (28, 54, 120),
    (40, 92, 60),
    (196, 178, 140),
    (110, 74, 48),
    (206, 170, 40),
    (90, 140, 180),
    (120, 40, 70),
)
_DARK_GLASS = (38, 44, 52)


@dataclass(frozen=True, slots=True)
class Car:
    """A car's shape in metres, its paint, and the studio it stands in."""

    length: float
    width: float
    sill: float
    belt: float
    roof: float
    cabin: tuple[float, float, float, float]  # x of its base's rear and front, of its roof's rear and front, in lengths
    paint: Rgb
    rim: Rgb
    studio_seed: int


def draw_car_shape(rng: Rng) -> Car:
    """Draw one car: a sedan, hatchback, van or pickup in one of the usual paints."""
    cabins = (
        ((-0.40, 0.20, -0.24, 0.04), 1.42, 4.6),
        ((-0.49, 0.20, -0.42, 0.05), 1.50, 4.0),
        ((-0.49, 0.34, -0.47, 0.20), 1.85, 4.7),
        ((-0.08, 0.24, -0.05, 0.12), 1.70, 5.2),
    )
    cabin, roof, length = cabins[rng.integers(len(cabins))]
    paint = scale(np.array(PAINTS[rng.integers(len(PAINTS))]) + rng.normal(0, 10, 3), 1.0)
    return Car(
        length=length * float(rng.uniform(0.94, 1.06)),
        width=float(rng.uniform(1.7, 1.95)),
        sill=float(rng.uniform(0.26, 0.36)),
        belt=float(rng.uniform(0.88, 1.02)),
        roof=roof * float(rng.uniform(0.97, 1.05)),
        cabin=cabin,
        paint=paint,
        rim=scale((180, 182, 186), float(rng.uniform(0.4, 1.1))),
        studio_seed=int(rng.integers(2**31)),
    )


def draw_car(rng: Rng, car: Car, angle: float, size_hw: tuple[int, int], grain: Grain) -> tuple[np.ndarray, np.ndarray]:
    """Photograph a car in its studio.

    Args:
        rng: for what differs from picture to picture: clutter, the camera's place, light, noise.
        car: what to photograph.
        angle: turn of the table, radians.
        size_hw: height and width, pixels.
        grain: noise and texture.

    Returns:
        Image, RGB uint8 (H, W, 3), and mask, 1 on the car, uint8 (H, W).
    """
    canvas = Canvas(size_hw)
    height, width = size_hw
    camera = Camera(
        turn=angle + float(rng.normal(0, 0.06)),
        elevation=float(rng.uniform(0.13, 0.24)),
        distance=9.0,
        focal_px=width * float(rng.uniform(1.36, 1.52)),
        center_xy=(width * float(rng.uniform(0.46, 0.54)), height * float(rng.uniform(0.68, 0.74))),
    )
    _draw_studio(canvas, rng, np.random.default_rng(car.studio_seed), grain.texture)
    x, y = car.length / 2, car.width / 2
    ground = np.array([(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)]) * 1.06
    canvas.shade(camera.project(ground), float(rng.uniform(0.35, 0.7)), width / 60)
    _draw_car_body(canvas, camera, car)
    return canvas.finish(rng, noise=grain.noise, light_HW=rng.uniform(0.8, 1.15, (2, 3)))


def _draw_studio(canvas: Canvas, rng: Rng, studio: Rng, texture: float) -> None:
    height, width = canvas.height, canvas.width
    horizon = height * float(studio.uniform(0.36, 0.5))
    wall, floor = (scale(studio.uniform(0.82, 1.0, 3), float(studio.uniform(60, 240))) for _ in range(2))
    canvas.rectangle(0, 0, width, horizon, wall, None)
    canvas.rectangle(0, horizon, width, height, floor, None)
    step = float(studio.uniform(12, 40))
    for left in np.arange(-float(rng.uniform(0, step)), width, step):  # panels of the wall
        canvas.rectangle(left, 0, left + step * 0.08, horizon, scale(wall, 0.8), None)
    for _ in range(int(studio.integers(1, 4))):  # the turntable's rings
        ring = float(studio.uniform(0.3, 0.7)) * width
        canvas.ellipse(width / 2, height * 0.74, ring, ring * 0.3, scale(floor, float(studio.uniform(0.8, 1.2))), None)
    for _ in range(int(rng.integers(3, 8))):  # posters, lamps and boxes, in the colours of cars
        _draw_clutter(canvas, rng, horizon)
    blotches = rng.uniform(0.86, 1.14, (9, 13))
    canvas.multiply(blotches, rng.uniform(1 - texture, 1 + texture, (height // 3, width // 3)))


def _draw_clutter(canvas: Canvas, rng: Rng, horizon: float) -> None:
    height, width = canvas.height, canvas.width
    color = scale(np.array(PAINTS[rng.integers(len(PAINTS))]) + rng.normal(0, 12, 3), float(rng.uniform(0.7, 1.1)))
    x = float(rng.uniform(0, width))
    kind = rng.integers(4)
    if kind == 0:  # poster
        half, top = width * float(rng.uniform(0.03, 0.1)), horizon * float(rng.uniform(0.05, 0.5))
        bottom = top + height * float(rng.uniform(0.08, 0.25))
        canvas.rectangle(x - half, top, x + half, bottom, color, None)
        canvas.rectangle(x - half * 0.8, top + 3, x + half * 0.8, top + 6, scale(color, 0.5), None)
    elif kind == 1:  # lamp on a stand
        foot, thick = horizon + height * float(rng.uniform(0.05, 0.2)), width * 0.006
        canvas.rectangle(x - thick, horizon * 0.3, x + thick, foot, scale(color, 0.6), None)
        canvas.ellipse(x, horizon * 0.3, width * 0.03, width * 0.03, color, None)
    elif kind == 2:  # box on the floor
        half, foot = width * float(rng.uniform(0.03, 0.09)), horizon + height * float(rng.uniform(0.03, 0.16))
        top = foot - half * float(rng.uniform(0.8, 2.2))
        canvas.rectangle(x - half, top, x + half * 0.4, foot, color, None)
        side = np.array(
            [(x + half * 0.4, top), (x + half, top - half * 0.2), (x + half, foot - half * 0.3), (x + half * 0.4, foot)]
        )
        canvas.polygon(side, scale(color, 0.65), None)
    else:  # tyre against the wall
        radius, foot = width * float(rng.uniform(0.02, 0.045)), horizon + height * float(rng.uniform(0.02, 0.12))
        canvas.ellipse(x, foot - radius, radius, radius, (34, 34, 36), None)
        canvas.ellipse(x, foot - radius, radius * 0.6, radius * 0.6, color, None)


def _draw_car_body(canvas: Canvas, camera: Camera, car: Car) -> None:
    x, y = car.length / 2, car.width / 2
    profile = np.array([(-x, car.sill), (x * 0.98, car.sill), (x, car.belt * 0.66), (x * 0.9, car.belt * 0.84),
                        (x * 0.25, car.belt), (-x * 0.9, car.belt), (-x, car.belt * 0.85)])  # fmt: skip
    wheels = [(cx * car.length, side) for cx in (-0.31, 0.30) for side in (-1, 1)]
    outward = camera.rotate(np.array([[0.0, 1.0, 0.0]]))[0, 1]  # > 0: the side y > 0 is turned away
    for cx, side in wheels:
        _draw_tyre(canvas, camera, car, cx, side)
    left, right = (np.column_stack([profile[:, 0], np.full(len(profile), s * y), profile[:, 1]]) for s in (-1, 1))
    for face in draw_prism(canvas, camera, (left, right), car.paint, 1):
        if len(face) != 4:
            _draw_flank(canvas, camera, car, face)
        elif abs(face[:, 0].mean()) > 0.93 * x:
            _draw_nose(canvas, camera, face, front=face[:, 0].mean() > 0)
    for cx, side in wheels:
        if side * outward < 0:
            _draw_wheel(canvas, camera, car, cx, side)
    rear, front, roof_rear, roof_front = (share * car.length for share in car.cabin)
    sections = np.array([(rear, car.belt), (front, car.belt), (roof_front, car.roof), (roof_rear, car.roof)])
    halves = np.array([0.96, 0.96, 0.8, 0.8]) * y
    left, right = (np.column_stack([sections[:, 0], s * halves, sections[:, 1]]) for s in (-1, 1))
    for face in draw_prism(canvas, camera, (left, right), car.paint, 1):
        if np.ptp(face[:, 2]) < 0.05:
            continue  # the roof
        is_side = np.ptp(face[:, 0]) > 0.5 * (front - rear) and face[:, 1].min() * face[:, 1].max() > 0
        panes = ((0.08, 0.5), (0.55, 0.9)) if is_side else ((0.1, 0.9),)
        # sides run base then roof; windscreens run along the side first
        for pane in panes:
            quad = cut_patch(face, pane, (0.12, 0.86)) if is_side else cut_patch(face, (0.12, 0.88), pane)
            canvas.polygon(camera.project(quad), _DARK_GLASS, 1)
            canvas.polygon(camera.project(cut_patch(quad, (0.1, 0.35), (0.2, 0.9))), mix(_DARK_GLASS, (200, 210, 220), 0.3), 1)


def _draw_flank(canvas: Canvas, camera: Camera, car: Car, face: np.ndarray) -> None:
    y = face[0, 1]
    for door in (-0.16, 0.04, 0.2):
        line = np.array([(door, car.sill), (door + 0.006, car.sill), (door + 0.006, car.belt), (door, car.belt)])
        points = np.column_stack([line[:, 0] * car.length, np.full(4, y), line[:, 1]])
        canvas.polygon(camera.project(points), scale(car.paint, 0.4), 1)
    low, high, half = car.sill, car.sill + 0.09, car.length * 0.49
    sill = np.array([(-half, y, low), (half, y, low), (half, y, high), (-half, y, high)])
    canvas.polygon(camera.project(sill), scale(car.paint, 0.35), 1)


def _draw_nose(canvas: Canvas, camera: Camera, face: np.ndarray, *, front: bool) -> None:
    low, high = face[:, 2].min(), face[:, 2].max()
    x, y = face[:, 0].mean(), np.abs(face[:, 1]).max()
    upright = np.array([(x, -y, low), (x, y, low), (x, y, high), (x, -y, high)])
    lamp = (235, 232, 210) if front else (190, 30, 30)
    for across in ((0.04, 0.22), (0.78, 0.96)):
        canvas.polygon(camera.project(cut_patch(upright, across, (0.55, 0.85))), lamp, 1)
    canvas.polygon(camera.project(cut_patch(upright, (0.3, 0.7), (0.5, 0.85))), (30, 30, 32) if front else (120, 120, 124), 1)
    canvas.polygon(camera.project(cut_patch(upright, (0.38, 0.62), (0.1, 0.4))), (225, 225, 215), 1)


def _wheel_ring(cx: float, y: float, radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([cx + radius * np.cos(angle), np.full(24, y), 0.33 + radius * np.sin(angle)])


def _draw_tyre(canvas: Canvas, camera: Camera, car: Car, cx: float, side: int) -> None:
    y = car.width / 2 * side
    draw_prism(canvas, camera, (_wheel_ring(cx, y, 0.33), _wheel_ring(cx, y - 0.24 * side, 0.33)), (36, 36, 38), 1)


def _draw_wheel(canvas: Canvas, camera: Camera, car: Car, cx: float, side: int) -> None:
    y = car.width / 2 * side * 1.005
    for radius, color in ((0.39, (18, 18, 20)), (0.33, (40, 40, 42)), (0.21, car.rim), (0.06, (50, 50, 52))):
        ring = _wheel_ring(cx, y, radius)
        if radius > 0.33:  # the arch ends at the sill
            ring[:, 2] = np.maximum(ring[:, 2], car.sill)
        canvas.polygon(camera.project(ring), color, 1)
