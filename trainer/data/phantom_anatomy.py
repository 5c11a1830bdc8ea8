"""
What the images of the synthetic archive show: a compressed breast in two views, drawn from random numbers, and its marker.

Lengths are in image heights, angles in radians; the chest wall is at the left edge, and a right breast is the mirror image.
Covered: outline with nipple and skin, rim, power-law tissue around a gland that opens from the nipple, strands, vessels,
pectoral muscle. Not covered: lesions, calcifications, implants, what a grid or a film adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""(H, W) of one image, unless said otherwise."""

WIDTH = 13 / 16
"""Of an image whose height is 1: a detector of 24 x 29 cm."""

_TISSUE_EXPONENT = 1.5
"""Of the amplitude spectrum 1/f^e: a power spectrum of exponent 3. Source: Burgess, Med. Phys. 26 (1999)."""
_SOFTNESS = 0.5
"""Of the transition between fat and gland, in standard deviations of the field that decides."""
_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 2048, dtype=np.float32)
"""From straight up to straight down, as seen from the chest wall."""
_BEHIND = 0.12
"""From the edge of the image to the chest wall behind it: the compressed breast is wider there."""
_STRANDS = ((3.0, 8.0, 0.6), (6.0, 13.0, 0.7), (9.0, 6.0, 0.6))
"""Across and along, how far they are apart and run on (in 1/400 of half a turn and 1/176 of the height), and their weight."""
_COARSE = (7, 6)
"""Knots of the pattern that both sides share."""


@dataclass(frozen=True)
class Anatomy:
    """What the four images of a patient have in common."""

    dense_area: float
    """Share of the breast that is dense, 0..1."""
    depth: float
    """From the chest wall to the skin behind the nipple."""
    height: float
    """Half of the breast's height in CC."""
    fullness: float
    """Exponent of the outline: 2 is an ellipse."""
    rim: float
    """Depth below the skin at which the breast has its full thickness."""
    scatter: float
    """0 for a gland in one piece, 1 for one in many."""
    strands: float
    """Brightness of ligaments, ducts and vessels."""
    contrast: float
    """Of gland over fat."""
    pattern: Field
    """(views, *_COARSE) where gland is, at a coarse scale."""


@dataclass(frozen=True)
class Drawing:
    """One image."""

    values: Field
    """0..1, dense tissue bright."""
    depth: Field
    """Below the skin; negative where nothing but air is."""
    dense: Field
    """0..1, how dense the tissue is."""


@dataclass(frozen=True)
class _Outline:
    """The skin in polar coordinates around a point of the chest wall."""

    centre: float
    """Height of that point."""
    radius: NDArray[np.float32]
    """(2048,) to the skin, by `_ANGLES`."""
    nipple: tuple[float, float]
    """x and y of its base."""
    armpit: float
    """x of the skin at the upper edge of the image; 0 in CC, which does not reach there."""


def draw_anatomy(random: np.random.Generator, dense_area: float) -> Anatomy:
    """Return a patient's anatomy; fatty breasts are larger on average."""
    size = float(np.clip(random.normal(0.93 - 0.15 * (dense_area - 0.35), 0.09), 0.7, 1.1))
    return Anatomy(
        dense_area=dense_area,
        depth=size * random.uniform(0.46, 0.6),
        height=size * random.uniform(0.38, 0.44),
        fullness=random.uniform(1.95, 2.3),
        rim=random.uniform(0.08, 0.13),
        scatter=random.uniform(0.0, 1.0),
        strands=random.uniform(0.6, 1.2),
        contrast=random.uniform(0.24, 0.32) + 0.2 * dense_area,
        pattern=random.standard_normal((2, *_COARSE), dtype=np.float32),
    )


def draw_breast(random: np.random.Generator, anatomy: Anatomy, view: str, side: int) -> Drawing:
    """Return an image of *side* pixels height and 13/16 of that width, *view* being CC or MLO."""
    pixel = 1 / side
    y = ((np.arange(side)[:, None] + 0.5) * pixel).astype(np.float32)
    x = ((np.arange(round(side * WIDTH))[None, :] + 0.5) * pixel).astype(np.float32)
    outline = _draw_outline(random, anatomy, view)
    depth = _depth_below_skin(outline, x, y)
    muscle_depth = _muscle_depth(random, outline.armpit, x, y) if view == "MLO" else np.full_like(depth, -1)
    texture = _draw_texture(random, (depth.shape[0], depth.shape[1]))
    strands = _draw_strands(random, outline, texture, x, y)
    coarse = _draw_coarse(random, anatomy, view, (depth.shape[0], depth.shape[1]))
    mixed = _gland_region(outline, depth, muscle_depth, x, y) + 0.55 * coarse + 0.4 * strands
    mixed += (0.55 + 0.3 * anatomy.scatter) * texture
    dense = _choose_dense(random, mixed, (depth > 0) & (muscle_depth < 0), anatomy.dense_area)
    thickness = (depth / anatomy.rim).clip(0, 1)
    thickness = np.sqrt(thickness * (2 - thickness))  # a round edge
    values = 0.26 + 0.03 * texture + 0.02 * coarse + dense * (anatomy.contrast + 0.04 * texture)
    values += anatomy.strands * 0.05 * strands * (0.8 + 0.7 * dense)
    values += anatomy.strands * _draw_vessels(random, outline, (depth.shape[0], depth.shape[1]))
    if view == "MLO":
        share, brightness = _draw_muscle(random, muscle_depth, texture)
        values += share * (brightness - 0.75 * values)
    skin = max(0.004, 0.8 * pixel)
    values = thickness * values + 0.07 * np.exp(-(((depth - skin) / skin) ** 2))
    values *= (depth / (1.5 * pixel) + 0.5).clip(0, 1)  # no staircase
    return Drawing(values=values.astype(np.float32), depth=depth, dense=dense)


@cache
def draw_marker(shape: tuple[int, int], laterality: str, view: str) -> Field:
    """Return side and view in letters, 0..1, in the upper corner away from the chest wall."""
    height, width = shape
    text, scale, margin = f"{laterality} {view}", height / 700, height // 30
    thickness = max(1, round(height / 250))
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    left = width - text_width - margin if laterality == "L" else margin
    canvas = np.zeros(shape, dtype=np.uint8)
    place = (left, margin + text_height)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _draw_outline(random: np.random.Generator, anatomy: Anatomy, view: str) -> _Outline:
    """Return the skin: a half superellipse, in MLO tilted and with the armpit above it, and the nipple on it."""
    tilt = 0.0 if view == "CC" else random.uniform(0.08, 0.2)
    angle = _ANGLES - tilt
    depth = _BEHIND + anatomy.depth * random.uniform(0.97, 1.03)
    height = anatomy.height * random.uniform(0.97, 1.03) * (1.0 if view == "CC" else 0.9)
    exponent = anatomy.fullness
    radius = (np.abs(np.cos(angle) / depth) ** exponent + np.abs(np.sin(angle) / height) ** exponent) ** (-1 / exponent)
    for wave in (2, 3, 5):
        radius *= 1 + random.normal(0, 0.012 / wave) * np.cos(wave * _ANGLES + random.uniform(0, 6.28))
    centre, armpit = random.uniform(0.47, 0.53), 0.0
    if view == "MLO":
        centre = random.uniform(0.56, 0.6)
        armpit, lean = min(0.42, anatomy.depth * random.uniform(0.62, 0.76)), random.uniform(0.1, 0.3)
        arm = (armpit + _BEHIND + lean * centre) / (np.cos(_ANGLES) - lean * np.sin(_ANGLES)).clip(0.05)
        arm = np.where(_ANGLES < 0, arm, arm[len(arm) // 2] * np.cos(_ANGLES) ** 2)
        radius = (radius**7 + arm**7) ** (1 / 7)
    direction = tilt + random.normal(0, 0.06)
    base = float(np.interp(direction, _ANGLES, radius))
    away = np.abs(_ANGLES - direction) * base / random.uniform(0.017, 0.022)
    radius = radius + random.uniform(0.006, 0.02) * np.exp(-(away**3))
    nipple = (base * float(np.cos(direction)) - _BEHIND, centre + base * float(np.sin(direction)))
    return _Outline(centre, radius.astype(np.float32), nipple, armpit)


def _depth_below_skin(outline: _Outline, x: Field, y: Field) -> Field:
    """Return the distance to the skin, negative outside: exact at the skin, and close to it elsewhere."""
    x, y = x + np.float32(_BEHIND), y - np.float32(outline.centre)
    step = _ANGLES[1] - _ANGLES[0]
    slope = np.gradient(outline.radius, step)
    across = outline.radius / np.hypot(outline.radius, slope)
    index = np.rint((np.arctan2(y, x) + np.pi / 2) / step).astype(np.int32)
    depth: Field = (outline.radius[index] - np.hypot(x, y)) * across.astype(np.float32)[index]
    return depth


def _draw_texture(random: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Return noise with an amplitude spectrum of 1/f^e, mean 0 and standard deviation 1."""
    rows = np.fft.fftfreq(shape[0]).astype(np.float32)[:, None]
    columns = np.fft.rfftfreq(shape[1]).astype(np.float32)[None, :]
    squared = rows**2 + columns**2
    squared[0, 0] = np.inf  # no constant part
    noise = random.standard_normal((*squared.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    texture = np.fft.irfft2(noise * squared ** np.float32(-_TISSUE_EXPONENT / 2), shape)
    scaled: Field = (texture / texture.std()).astype(np.float32)
    return scaled


def _draw_strands(random: np.random.Generator, outline: _Outline, texture: Field, x: Field, y: Field) -> Field:
    """
    Return thin curves, mean about 0, that run from the nipple to the chest wall: ducts, septa, Cooper's ligaments.

    They are where smooth noise crosses 0, in polar coordinates around a point before the nipple, which a little of the
    image's own texture bends.
    """
    side = texture.shape[0]
    scale = min(1.0, side / 512)
    rows, columns = round(400 * scale), round(176 * scale)
    pattern = np.zeros((rows, columns), dtype=np.float32)
    for across, along, weight in _STRANDS:
        white = random.standard_normal((rows, columns), dtype=np.float32)
        noise = cv2.GaussianBlur(white, (0, 0), along * scale, sigmaY=across * scale)
        knots = random.standard_normal((8, 6), dtype=np.float32)
        fades = cv2.resize(knots, (columns, rows), interpolation=cv2.INTER_CUBIC)
        curves = np.exp(-((noise * np.float32(across**0.5 / 0.8 / np.std(noise))) ** 2))
        pattern += np.float32(weight) * curves * (fades + 0.8).clip(0, 2)
    pattern -= pattern.mean()
    bend = 0.02 * cv2.GaussianBlur(texture, (0, 0), 0.01 * side)
    towards, along_skin = outline.nipple[0] + 0.14 - x, y - outline.nipple[1]
    row = (np.arctan2(along_skin, towards) / np.pi + 0.5 + bend) * rows
    column = (np.hypot(towards, along_skin) + bend) * columns
    strands = cv2.remap(
        pattern, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return strands.astype(np.float32, copy=False)


def _draw_coarse(random: np.random.Generator, anatomy: Anatomy, view: str, shape: tuple[int, int]) -> Field:
    """Return the patient's own pattern, a little different on each side."""
    own = random.standard_normal(_COARSE, dtype=np.float32)
    knots: Field = 0.8 * anatomy.pattern[int(view == "MLO")] + 0.6 * own  # variance 1
    return cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)


def _gland_region(outline: _Outline, depth: Field, muscle_depth: Field, x: Field, y: Field) -> Field:
    """Return where gland is likely: a cone that opens from the nipple, with fat below the skin and before the muscle."""
    nipple_x, nipple_y = outline.nipple
    towards = nipple_x - x
    lift = 0.12 if muscle_depth[0, 0] < 0 else 0.3  # most gland is in the upper outer quarter
    off = (y - nipple_y + lift * towards) / (0.07 + 0.5 * towards.clip(0))
    reach = (towards - 0.4 * nipple_x) / (0.55 * nipple_x)
    region = -1.1 * off**2 - 1.2 * reach**2
    region -= 3.0 * np.exp(-((depth / 0.03).clip(0) ** 2))
    region -= 1.5 * np.exp(-x / 0.03)
    region -= 4.0 / (1 + np.exp(-(muscle_depth + 0.035) / 0.012))
    likely: Field = region.astype(np.float32)
    return likely


def _choose_dense(random: np.random.Generator, mixed: Field, inside: NDArray[np.bool_], area: float) -> Field:
    """Return how dense the tissue is, 0..1: dense in about the share *area* of what is *inside*."""
    step = max(1, mixed.shape[0] // 64)
    share = float(np.clip(area + random.normal(0, 0.02), 0.02, 0.95))
    threshold = np.quantile(mixed[::step, ::step][inside[::step, ::step]], 1 - share)
    dense: Field = (1 / (1 + np.exp(((threshold - mixed) / _SOFTNESS).clip(-30, 30)))).astype(np.float32)
    return dense


def _draw_vessels(random: np.random.Generator, outline: _Outline, shape: tuple[int, int]) -> Field:
    """Return a few tortuous lines that wander from the chest wall towards the nipple."""
    side = shape[0]
    canvas = np.zeros(shape, dtype=np.uint8)
    for _ in range(random.integers(1, 5)):
        start = outline.centre + random.uniform(-0.3, 0.3)
        t = np.linspace(0, random.uniform(0.5, 0.85), 40)
        sway = np.interp(t * 8, np.arange(9), np.cumsum(random.normal(0, 0.018, 9)))
        points = np.stack([t * outline.nipple[0], start + (outline.nipple[1] - start) * t**1.5 * 0.7 + sway], axis=1)
        thickness = max(1, round(random.uniform(0.003, 0.006) * side))
        cv2.polylines(canvas, [np.rint(points * side * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(canvas, (0, 0), max(0.6, 0.002 * side))
    return soft.astype(np.float32) * np.float32(0.09 / 255 * min(1.0, side / 300))


def _muscle_depth(random: np.random.Generator, armpit: float, x: Field, y: Field) -> Field:
    """Return the distance to the muscle's border, positive within: a triangle at the top, slightly curved."""
    width, height = armpit * random.uniform(0.65, 0.85), random.uniform(0.45, 0.68)
    along = (y / height).clip(0, 1)
    bulge = random.uniform(-0.06, 0.1)
    line = 1 - x / width - y / height + 4 * bulge * along * (1 - along)
    depth: Field = (line * (width * height / np.hypot(width, height))).astype(np.float32)
    return depth


def _draw_muscle(random: np.random.Generator, depth: Field, texture: Field) -> tuple[Field, Field]:
    """Return how much of each pixel is muscle, 0..1, and how bright that is: thicker inwards, with fibres along its border."""
    soft = random.uniform(0.005, 0.011)
    share = 1 / (1 + np.exp((-depth / soft).clip(-30, 30)))
    fibres = np.sin(random.uniform(55, 75) * depth + 1.2 * texture)
    brightness = random.uniform(0.4, 0.5) + 0.2 * (depth / 0.22).clip(0, 1) + 0.012 * fibres + 0.03 * texture
    return share.astype(np.float32), brightness.astype(np.float32)
