"""Toy CLEVR, ADE20K and cells: moving blocks on a table, rooms and streets, stained cells under a microscope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unetfast.data.toy.canvas import Camera, Canvas, Grain, Rgb, Rng, cut_patch, draw_prism, mix, scale

CLEVR_COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "cyan": (41, 208, 208),
    "purple": (129, 38, 192),
    "yellow": (255, 238, 51),
}


@dataclass(frozen=True, slots=True)
class Block:
    """One moving object of a CLEVR-like video: place and speed on the ground, in world units and units a frame."""

    shape: int
    material: int
    color: int
    place: tuple[float, float]
    speed: tuple[float, float]
    radius: float

    @property
    def class_id(self) -> int:
        """Class = 1 + 16 * shape + 8 * material + colour, as the course's data set numbers it."""
        return 1 + 16 * self.shape + 8 * self.material + self.color


def draw_blocks(rng: Rng) -> list[Block]:
    """Draw the 4 to 7 objects of one video; no two look alike."""
    looks = rng.choice(48, size=int(rng.integers(4, 8)), replace=False)
    blocks = []
    for look in looks.tolist():
        place = (float(rng.uniform(-3.2, 3.2)), float(rng.uniform(-2.2, 3.0)))
        speed = (float(rng.normal(0, 0.07)), float(rng.normal(0, 0.07)))
        blocks.append(Block(look // 16, look // 8 % 2, look % 8, place, speed, float(rng.uniform(0.38, 0.48))))
    return blocks


def draw_clevr_frame(
    rng: Rng, blocks: list[Block], frame: int, size_hw: tuple[int, int], grain: Grain
) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame of a video.

    Returns:
        Image, RGB uint8 (H, W, 3), and mask of class ids 0..48, uint8 (H, W).
    """
    canvas = Canvas(size_hw)
    height, width = size_hw
    camera = Camera(0.0, 0.42, 11.0, width * 1.15, (width * 0.5, height * 0.5))
    canvas.rectangle(0, 0, width, height, (122, 122, 124), None)
    canvas.multiply(np.array([[0.72, 0.9, 0.75], [1.0, 1.12, 0.95], [0.9, 1.05, 0.85]]))
    placed = [(block.place[0] + frame * block.speed[0], block.place[1] + frame * block.speed[1], block) for block in blocks]
    for x, y, block in sorted(placed, key=lambda entry: -entry[1]):
        _draw_block(canvas, camera, block, np.array([x, y, 0.0]))
    return canvas.finish(rng, noise=grain.noise)


def _draw_block(canvas: Canvas, camera: Camera, block: Block, place: np.ndarray) -> None:
    color = list(CLEVR_COLORS.values())[block.color]
    value, radius = block.class_id, block.radius
    sides = 4 if block.shape == 0 else 28
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False) + block.color  # cubes stand askew
    reach = radius * (1.3 if block.shape == 0 else 1.0)
    ring = np.column_stack([reach * np.cos(angle), reach * np.sin(angle), np.zeros(sides)]) + place
    canvas.shade(camera.project(ring + np.array([0.25, 0.1, 0.0])), 0.45, canvas.width / 80)
    if block.shape == 1:
        x, y = camera.project(place[None] + np.array([0, 0, radius]))[0]
        size = camera.focal_px * radius / (camera.distance + place[1] * np.cos(camera.elevation))
        steps = 9
        for step in range(steps):  # rings of growing light towards the lamp
            share = step / steps
            light = (0.5 + 0.7 * share) if block.material else (0.3 + 0.4 * share + 0.9 * (step in (3, 6)) * 0.5)
            shift, inner = size * 0.4 * share, size * (1 - share)
            canvas.ellipse(x - shift * 0.8, y - shift, inner, inner, scale(color, light), value)
    else:
        faces = draw_prism(canvas, camera, (ring, ring + np.array([0, 0, 2 * radius])), color, value)
        if not block.material:  # metal mirrors the floor: a bright band on each upright face
            for face in faces:
                if len(face) == 4 and np.ptp(face[:, 2]) > radius:
                    canvas.polygon(
                        camera.project(cut_patch(face, (0.0, 1.0), (0.6, 0.75))), mix(color, (255, 255, 255), 0.45), value
                    )
    if not block.material:
        x, y = camera.project(place[None] + radius * np.array([-0.4, -0.5, 1.5]))[0]
        canvas.ellipse(x, y, 1.6, 1.6, (250, 250, 250), value)


# numbers of SceneParse150; 0 is "other"
_WALL, _BUILDING, _SKY, _FLOOR, _TREE, _CEILING, _ROAD, _BED = 1, 2, 3, 4, 5, 6, 7, 8
_WINDOW, _GRASS, _SIDEWALK, _DOOR, _CAR, _PAINTING = 9, 10, 12, 15, 21, 23
_DETAILS = (_TREE, _BED, _WINDOW, _GRASS, _DOOR, _CAR, _PAINTING)


def draw_ade_scene(rng: Rng, size_hw: tuple[int, int], grain: Grain) -> tuple[np.ndarray, np.ndarray]:
    """Draw a room or a street.

    Returns:
        Image, RGB uint8 (H, W, 3), and annotation in SceneParse150 numbers (0 = other), uint8 (H, W).
    """
    canvas = Canvas(size_hw)
    draw = _draw_room if rng.integers(2) else _draw_street
    draw(canvas, rng)
    for _ in range(grain.num_details):
        _draw_detail(canvas, rng)
    canvas.multiply(rng.uniform(1 - grain.texture, 1 + grain.texture, (size_hw[0] // 3, size_hw[1] // 3)))
    return canvas.finish(rng, noise=grain.noise, light_HW=rng.uniform(0.85, 1.15, (5, 7)))


def _tinted(rng: Rng, color: Rgb) -> Rgb:
    return scale(np.array(color) + rng.normal(0, 12, 3), float(rng.uniform(0.85, 1.15)))


def _draw_detail(canvas: Canvas, rng: Rng) -> None:
    """Draw a small thing with a ragged outline."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radius = canvas.height * float(rng.uniform(0.015, 0.07)) * rng.uniform(0.6, 1.4, 16)
    x, y = canvas.width * float(rng.uniform(0, 1)), canvas.height * float(rng.uniform(0, 1))
    outline = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    canvas.polygon(outline, scale(rng.uniform(20, 235, 3), 1.0), _DETAILS[rng.integers(len(_DETAILS))])


def _draw_room(canvas: Canvas, rng: Rng) -> None:
    height, width = canvas.height, canvas.width
    top, bottom = height * float(rng.uniform(0.1, 0.2)), height * float(rng.uniform(0.62, 0.75))
    canvas.rectangle(0, 0, width, height, _tinted(rng, (205, 190, 160)), _WALL)
    canvas.polygon(
        np.array([(0, 0), (width, 0), (width * 0.85, top), (width * 0.15, top)]), _tinted(rng, (240, 240, 236)), _CEILING
    )
    floor = np.array([(0, height), (width, height), (width * 0.85, bottom), (width * 0.15, bottom)])
    canvas.polygon(floor, _tinted(rng, (130, 88, 56)), _FLOOR)
    left = width * float(rng.uniform(0.2, 0.35))
    canvas.rectangle(left, height * 0.25, left + width * 0.14, height * 0.5, _tinted(rng, (170, 205, 235)), _WINDOW)
    left = width * float(rng.uniform(0.5, 0.55))
    canvas.rectangle(left, height * 0.27, left + width * 0.1, height * 0.4, _tinted(rng, (150, 50, 90)), _PAINTING)
    left = width * float(rng.uniform(0.68, 0.74))
    canvas.rectangle(left, height * 0.3, left + width * 0.1, bottom, _tinted(rng, (90, 60, 40)), _DOOR)
    x, y = width * float(rng.uniform(0.3, 0.5)), height * float(rng.uniform(0.72, 0.8))
    canvas.rectangle(x - width * 0.18, y - height * 0.1, x + width * 0.18, y + height * 0.08, _tinted(rng, (70, 90, 160)), _BED)
    canvas.ellipse(width * 0.75, height * 0.9, width * 0.05, height * 0.05, _tinted(rng, (60, 60, 60)), 0)


def _draw_street(canvas: Canvas, rng: Rng) -> None:
    height, width = canvas.height, canvas.width
    horizon = height * float(rng.uniform(0.5, 0.62))
    canvas.rectangle(0, 0, width, height, _tinted(rng, (140, 185, 235)), _SKY)
    canvas.rectangle(0, horizon, width, height, _tinted(rng, (80, 150, 60)), _GRASS)
    for side in (0.0, 0.62):
        left, top = width * (side + float(rng.uniform(0.0, 0.08))), height * float(rng.uniform(0.12, 0.3))
        canvas.rectangle(left, top, left + width * 0.3, horizon + 1, _tinted(rng, (165, 110, 90)), _BUILDING)
    x = width * float(rng.uniform(0.4, 0.6))
    for half, color, value in ((0.42, (185, 180, 172), _SIDEWALK), (0.3, (95, 95, 100), _ROAD)):
        road = np.array(
            [(x - width * half, height), (x + width * half, height), (x + width * 0.05, horizon), (x - width * 0.05, horizon)]
        )
        canvas.polygon(road, _tinted(rng, color), value)
    for _ in range(int(rng.integers(1, 4))):
        left, size = float(rng.uniform(0.05, 0.95)) * width, height * float(rng.uniform(0.08, 0.14))
        canvas.rectangle(left - 2, horizon - size, left + 2, horizon + size * 0.4, (84, 60, 40), _TREE)
        canvas.ellipse(left, horizon - size, size, size * 1.1, _tinted(rng, (34, 96, 36)), _TREE)
    y, half = height * float(rng.uniform(0.72, 0.85)), width * 0.08
    canvas.rectangle(x - half, y - height * 0.07, x + half, y, _tinted(rng, (170, 30, 35)), _CAR)
    canvas.rectangle(x - half * 0.7, y - height * 0.11, x + half * 0.7, y - height * 0.065, (38, 44, 52), _CAR)


def draw_cells(rng: Rng, size_hw: tuple[int, int], grain: Grain) -> tuple[np.ndarray, np.ndarray]:
    """Draw stained cells under a microscope.

    Returns:
        Image, RGB uint8 (H, W, 3), and mask: 0 background, 1 cell, 2 nucleus, 255 on the uncertain rims, uint8 (H, W).
    """
    canvas = Canvas(size_hw)
    height, width = size_hw
    canvas.rectangle(0, 0, width, height, _tinted(rng, (228, 214, 226)), 0)
    for _ in range(int(rng.integers(4, 9))):
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        radius = float(rng.uniform(0.07, 0.13)) * height
        color = _tinted(rng, (205, 150, 190))
        canvas.ellipse(x, y, radius + 1.5, radius + 1.5, color, 255)
        canvas.ellipse(x, y, radius, radius, color, 1)
        canvas.ellipse(x + radius * 0.2, y, radius * 0.4, radius * 0.45, _tinted(rng, (110, 60, 150)), 2)
    return canvas.finish(rng, noise=grain.noise, light_HW=rng.uniform(0.85, 1.15, (4, 6)))
