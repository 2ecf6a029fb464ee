"""Draws the sample dataset: flowers told apart by petal count, petal shape and pattern, not by colour."""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.floating[Any]]

SIZE = 96
"""Side of every drawn image, in pixels."""
_SIDE = 2 * SIZE  # everything is drawn at twice the size and averaged down


class _Species(NamedTuple):
    """What makes a class: everything else in a picture is drawn without looking at it."""

    name: str
    petals: int
    width: float  # greatest half-width of a petal, in petal lengths
    pattern: str
    belly: float = 0.55  # where along the petal it is widest
    tip: float = 0.5  # 0.5 is a round end, 1 a straight point, above 1 a drawn-out one
    notch: float = 0.0  # depth of the cleft in the tip, in petal lengths
    whorls: int = 1


_SPECIES = (
    _Species("three-petal-trillium", 3, 0.42, "plain", belly=0.45, tip=0.8),
    _Species("four-petal-clematis", 4, 0.30, "stripe", belly=0.5, tip=0.9),
    _Species("four-petal-poppy", 4, 0.58, "eye", belly=0.62),
    _Species("five-petal-phlox", 5, 0.40, "edge", belly=0.66, tip=0.45),
    _Species("five-petal-primrose", 5, 0.40, "eye", belly=0.70, notch=0.2),
    _Species("five-petal-geranium", 5, 0.40, "lines", belly=0.66, tip=0.45),
    _Species("six-petal-lily", 6, 0.27, "spots", belly=0.45, tip=0.9, whorls=2),
    _Species("six-petal-star", 6, 0.27, "stripe", belly=0.45, tip=0.9, whorls=2),
    _Species("eight-petal-cosmos", 8, 0.26, "band", belly=0.72, notch=0.1),
    _Species("twelve-petal-daisy", 12, 0.16, "plain", belly=0.6, tip=0.5),
)
_LEAF = _Species("leaf", 1, 0.24, "midrib", belly=0.4, tip=1.0)

CLASS_NAMES: tuple[str, ...] = tuple(species.name for species in _SPECIES)
"""The classes in label order; each is a folder name in the archive."""

# Hue, saturation and value of petals; every class draws from all of them.
_HUES = (
    (0.00, 0.00, 0.97), (0.13, 0.16, 0.97), (0.15, 0.75, 0.98), (0.09, 0.80, 0.97), (0.03, 0.72, 0.95),
    (0.98, 0.80, 0.85), (0.93, 0.45, 0.96), (0.87, 0.65, 0.80), (0.77, 0.55, 0.80), (0.68, 0.50, 0.90),
    (0.60, 0.48, 0.95),
)  # fmt: skip
_GREENS = ((0.22, 0.60, 0.55), (0.27, 0.62, 0.45), (0.31, 0.55, 0.38), (0.36, 0.45, 0.40))
_BACKDROPS = ("grass", "soil", "sky", "stone", "foliage", "wood")


class _Scene(NamedTuple):
    light: Array  # unit vector in the image plane, towards the light
    rng: Generator


class _Palette(NamedTuple):
    base: Array
    tip: Array
    mark: Array  # colour of the pattern
    heart: Array  # colour of the flower's centre


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """One HSV colour as float32[3, 1, 1] in 0..1, ready to fill planes [3, height, width]."""
    wheel = np.abs((hue * 6 + np.array([0, 4, 2])[:, None, None]) % 6 - 3) - 1
    return np.asarray(value * (1 - saturation * (1 - np.clip(wheel, 0, 1))), np.float32)


def _pick(colours: Sequence[tuple[float, float, float]], rng: Generator) -> Array:
    hue, saturation, value = colours[int(rng.integers(len(colours)))]
    hue += rng.normal(0, 0.015)
    return _rgb(hue, np.clip(saturation * rng.uniform(0.8, 1.15), 0, 1), min(1.0, value * rng.uniform(0.88, 1.04)))


def _palette(rng: Generator) -> _Palette:
    """Petal colours; the mark always differs from the petal in brightness, or the class could not be seen."""
    luma = np.array([0.3, 0.59, 0.11])
    tip = _pick(_HUES, rng)
    base = np.clip(tip * rng.uniform(0.72, 1.05) + rng.normal(0, 0.05, (3, 1, 1)), 0, 1).astype(np.float32)
    mark = _pick(_HUES, rng)
    while abs(luma @ (mark - tip).ravel()) < 0.3:
        mark = (_pick(_HUES, rng) * rng.uniform(0.25, 1.0)).astype(np.float32)
    heart = _pick(_HUES[1:5] if rng.random() < 0.6 else _GREENS, rng)
    return _Palette(base, tip, mark, heart)


def _ink(colour: Array) -> tuple[int, int, int]:
    red, green, blue = (np.clip(colour.ravel(), 0, 1) * 255).astype(int).tolist()
    return red, green, blue


def _sheet(pixels: Array) -> Image.Image:
    planes = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _array(sheet: Image.Image) -> Array:
    return np.asarray(sheet).transpose(2, 0, 1).astype(np.float32, order="C") / 255


def _smooth(x: Array, low: float, high: float) -> Array:
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def _noise(rng: Generator, cells: int, octaves: int = 3) -> Array:
    """Smooth noise of about -1..1, float32[size, size]; `cells` is the coarsest grid."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, (cells << octave, cells << octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 2**octave
    return total


def _profile(species: _Species, t: Array) -> Array:
    """Half-width at `t` (0 base, 1 tip) in petal lengths; 0 outside."""
    inside = np.clip(t, 0, 1)
    rise = species.tip * species.belly / (1 - species.belly)  # puts the maximum at `belly`
    peak = species.belly**rise * (1 - species.belly) ** species.tip
    return np.asarray(inside**rise * (1 - inside) ** species.tip * (species.width / peak))


def _marks(species: _Species, t: Array, q: Array, rim: Array, rng: Generator) -> Array:
    """How much of the mark colour shows, 0..1; `q` is -1..1 across, `rim` the distance to the edge."""
    if species.pattern == "stripe":
        return _smooth(-np.abs(q), -0.42, -0.26) * _smooth(-t, -0.97, -0.8)
    if species.pattern == "eye":
        return _smooth(0.16 * (1 - q * q) - t, -0.47, -0.36)
    if species.pattern == "band":
        return _smooth(-np.abs(t - 0.58), -0.17, -0.10)
    if species.pattern == "edge":
        return _smooth(-rim, -0.13, -0.07) * _smooth(t, 0.3, 0.5)
    if species.pattern == "lines":
        return _smooth(np.cos(q * 11), 0.1, 0.6) * _smooth(-t, -0.85, -0.6)
    if species.pattern == "spots":
        along, across = rng.uniform(0.25, 0.85, 9), rng.uniform(-0.75, 0.75, 9)
        gap = np.full_like(t, 1.0)
        for u, v in zip(along.tolist(), across.tolist(), strict=True):
            gap = np.minimum(gap, (t - u) ** 2 + ((q - v) * species.width) ** 2)
        return _smooth(-np.sqrt(gap), -0.055, -0.03)
    if species.pattern == "midrib":
        return 0.5 * _smooth(-np.abs(q), -0.12, -0.04)
    return np.zeros_like(t)


def _window(canvas: Array, at: Array, axes: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """The part of `canvas` [3, side, side] that the rectangle low..high covers, with a margin for soft edges,
    and the two coordinates of its pixels; `axes` [2, 2] maps coordinates to pixels around `at`."""
    corners = at + np.array([[u, v] for u in (low[0], high[0]) for v in (low[1], high[1])]) @ axes.T
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int) - 7, 0, canvas.shape[1]).tolist()
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 8, 0, canvas.shape[1]).tolist()
    x = (np.arange(x0, x1, dtype=np.float32) - float(at[0]))[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) - float(at[1]))[:, None]
    (a, b), (c, d) = np.linalg.inv(axes).tolist()
    return canvas[:, y0:y1, x0:x1], a * x + b * y, c * x + d * y


def _petal(
    canvas: Array, species: _Species, colours: _Palette, at: Array, axes: Array, scene: _Scene, bend: float
) -> None:
    """Paints one petal onto `canvas`; `axes` maps (along, across), in petal lengths, to pixels."""
    margin = species.width + 0.15
    region, along, across = _window(canvas, at, axes, np.array([-0.05, -margin]), np.array([1.06, margin]))
    if min(along.shape) < 4:  # outside, or a sliver narrower than its own shadow
        return
    across = across + bend * along * along
    reach = 1 - species.notch * np.exp(-((across / (0.32 * species.width)) ** 2)) if species.notch else 1.0
    t = along / reach
    half = _profile(species, t)
    rim = np.minimum(half - np.abs(across), (1 - t) * 1.5)
    q = np.clip(across / (half + 1e-3), -1, 1)
    pixels = float(np.sqrt(abs(np.linalg.det(axes))))
    cover = np.clip(rim * pixels + 0.5, 0, 1) * (along > 0)

    # A soft dark rim around the petal, shifted away from the light, lifts it off what lies below.
    shade = np.clip(rim * pixels / 7 + 0.55, 0, 1) * (along > 0.08) * 0.38
    dx, dy = np.round(-3 * scene.light).astype(int).tolist()
    height, width = shade.shape
    below = region[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    below *= 1 - shade[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]

    colour = colours.base + (colours.tip - colours.base) * _smooth(t, 0.1, 0.8)
    mark = _marks(species, t, q, rim, scene.rng)
    colour = colour + (colours.mark - colour) * mark
    radial, lateral = axes[:, 0] / np.hypot(*axes[:, 0]), axes[:, 1] / np.hypot(*axes[:, 1])
    light = 0.94 + 0.20 * float(lateral @ scene.light) * q + 0.22 * float(radial @ scene.light) * (t - 0.55)
    light = light - 0.045 * _smooth(np.cos(q * 17 + 3 * t), 0.2, 1.0) * (1 - 0.5 * t)  # veins
    light = light - 0.30 * _smooth(-t, -0.4, -0.05) + 0.07 * _smooth(-rim, -0.05, -0.01)  # throat, bright rim
    light = light * (1 + scene.rng.normal(0, 0.03))
    region += cover * (colour * light - region)


def _disc(canvas: Array, colour: Array, at: Array, radius: float, squash: Array, scene: _Scene) -> None:
    """Paints a lit, stippled button; `squash` [2, 2] is the flower's pose."""
    reach = np.array([1.5, 1.5])
    region, u, v = _window(canvas, at, squash * radius, -reach, reach)
    r = np.sqrt(u * u + v * v)
    region *= 1 - 0.45 * np.clip(1.6 - r * 1.1, 0, 1)
    florets = np.cos(np.arctan2(v, u) * 8 + r * 9) * np.cos(np.arctan2(v, u) * 8 - r * 9)
    light = 0.85 + 0.3 * (u * scene.light[0] + v * scene.light[1]) + 0.16 * florets * _smooth(r, 0.05, 0.4)
    cover = np.clip((1 - r) * radius + 0.5, 0, 1)
    region += cover * (colour * light - region)


def _flower(canvas: Array, species: _Species, at: Array, radius: float, scene: _Scene) -> None:
    """Paints one flower head of about `radius` pixels in a free pose."""
    rng = scene.rng
    colours = _palette(rng)
    axis, squeeze = rng.uniform(0, np.pi), rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(axis), -np.sin(axis)], [np.sin(axis), np.cos(axis)]])
    pose = turn @ np.diag([1.0, squeeze]) @ turn.T
    spin, bend, plump = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.12), rng.uniform(0.92, 1.08)
    for i in [i for whorl in range(species.whorls) for i in range(whorl, species.petals, species.whorls)]:
        angle = spin + 2 * np.pi * i / species.petals + rng.normal(0, 0.25 / species.petals)
        long, cos, sin = rng.uniform(0.92, 1.05), np.cos(angle), np.sin(angle)
        axes = pose @ np.array([[long * cos, -plump * sin], [long * sin, plump * cos]]) * radius
        _petal(canvas, species, colours, at, axes, scene, bend + rng.normal(0, 0.03))
    heart = radius * rng.uniform(0.13, 0.21)
    _disc(canvas, colours.heart, at, heart, pose, scene)
    if rng.random() < 0.4:  # stamens
        for angle in spin + np.arange(0, 2 * np.pi, np.pi / 4) + rng.normal(0, 0.1):
            foot = pose @ np.array([np.cos(angle), np.sin(angle)]) * heart * 1.35
            _disc(canvas, colours.heart * 1.1, at + foot, max(2.0, heart * 0.2), pose, scene)


def _backdrop(kind: str, rng: Generator) -> Array:
    """What lies behind, float32[3, size, size]; it is blurred later, so half the resolution is enough."""
    green = _pick(_GREENS, rng)
    if kind == "sky":
        high, low = _rgb(0.58, rng.uniform(0.35, 0.65), 0.88), _rgb(0.55, 0.15, 0.97)
        down = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
        cloud = _smooth(_noise(rng, 3), 0.1, 0.9) * 0.7
        sky = (high + (low - high) * down) * (1 - cloud) + cloud * 0.97
        ridge = _noise(rng, 2)[0] * 6 + SIZE * rng.uniform(0.75, 1.05)
        return np.where(np.arange(SIZE)[:, None] > ridge, green, sky).astype(np.float32)
    tone = {
        "grass": green,
        "foliage": green * rng.uniform(0.55, 1.0),
        "soil": _rgb(rng.uniform(0.05, 0.09), rng.uniform(0.35, 0.55), rng.uniform(0.30, 0.50)),
        "stone": _rgb(rng.uniform(0.05, 0.6), 0.08, rng.uniform(0.45, 0.72)),
        "wood": _rgb(rng.uniform(0.06, 0.09), rng.uniform(0.3, 0.55), rng.uniform(0.48, 0.68)),
    }[kind]
    sheet = _sheet(tone * (1 + 0.22 * _noise(rng, 3, 4 if kind in ("soil", "stone") else 2)))
    pen = ImageDraw.Draw(sheet)
    if kind == "grass":
        for _ in range(50):
            x, y = rng.uniform(0, SIZE), rng.uniform(10, SIZE + 20)
            blade = [(x - 1.5, y), (x + 1.5, y), (x + rng.normal(0, 11), y - rng.uniform(20, 55))]
            pen.polygon(blade, fill=_ink(_pick(_GREENS, rng) * rng.uniform(0.6, 1.6)))
    elif kind == "wood":
        plank = rng.uniform(18, 35)
        for top in np.arange(-rng.uniform(0, plank), SIZE, plank).tolist():
            for _ in range(5):
                left = top + rng.uniform(2, plank)
                pen.line((0, left, SIZE, left + rng.normal(0, 3)), fill=_ink(tone * rng.uniform(0.78, 1.12)))
            pen.line((0, top, SIZE, top + 1), fill=_ink(tone * 0.45), width=2)
    else:
        count, least, most = {"soil": (26, 1.0, 4.5), "stone": (9, 5.0, 20.0), "foliage": (22, 3.0, 13.0)}[kind]
        for _ in range(count):
            (x, y), r = rng.uniform(0, SIZE, 2), rng.uniform(least, most)
            if kind == "foliage":
                fill = _pick(_GREENS, rng) * rng.uniform(0.5, 1.8) + rng.uniform(0, 0.15)
            else:
                fill = tone * rng.uniform(0.9, 1.45)
                pen.ellipse((x - r, y - 0.8 * r + 1, x + r, y + 0.8 * r + 1), fill=_ink(tone * 0.6))
            pen.ellipse((x - r, y - 0.8 * r, x + r, y + 0.8 * r), fill=_ink(fill))
    return _array(sheet)


def _stem(canvas: Array, at: Array, radius: float, scene: _Scene) -> Array:
    """Paints stem and leaves below a flower head; returns the new canvas."""
    rng = scene.rng
    green = _pick(_GREENS, rng) * 1.1
    foot = np.array([at[0] + rng.normal(0, 40), _SIDE + 12.0])
    knee, s = (at + foot) / 2 + [rng.normal(0, 22), 0], np.linspace(0, 1, 14)[:, None]
    path = (1 - s) ** 2 * at + 2 * s * (1 - s) * knee + s**2 * foot
    sheet = _sheet(canvas)
    pen = ImageDraw.Draw(sheet)
    thick = max(4, round(radius * 0.09))
    for shift, wide, tone in ((1.5, thick + 2, 0.45), (0.0, thick, 0.85), (-0.8, thick // 2, 1.2)):
        line = [(x + shift, y) for x, y in path.tolist()]
        pen.line(line, fill=_ink(green * tone), width=wide, joint="curve")
    canvas = _array(sheet)
    leaf = _Palette(green * 0.8, green, np.minimum(green * 1.6, 1), green)
    for _ in range(int(rng.integers(1, 4))):
        spot = path[int(rng.integers(4, 12))]
        angle = float(rng.choice([0.0, np.pi])) + rng.normal(-0.3, 0.5)
        cos, sin = np.cos(angle), np.sin(angle)
        axes = np.array([[cos, -sin], [sin, cos]]) * radius * rng.uniform(0.6, 1.1)
        _petal(canvas, _LEAF, leaf, spot, axes, scene, rng.normal(0, 0.2))
    return canvas


def draw(label: int, seed: int) -> Image.Image:
    """One picture of class `label` (RGB, 96 x 96); the same arguments give the same pixels.

    The flower in focus is the class; blurred ones behind it are of any class. IndexError for an unknown
    label, ValueError for a negative seed.
    """
    if not 0 <= label < len(_SPECIES):
        raise IndexError(f"label {label} is not in 0..{len(_SPECIES) - 1}")
    if seed < 0:
        raise ValueError("the seed must not be negative")
    rng = np.random.default_rng([seed, label])
    towards = rng.uniform(0, 2 * np.pi)
    scene = _Scene(np.array([np.cos(towards), np.sin(towards)], np.float32), rng)
    canvas = _backdrop(_BACKDROPS[int(rng.integers(len(_BACKDROPS)))], rng)
    for _ in range(int(rng.integers(0, 2))):
        other = _SPECIES[int(rng.integers(len(_SPECIES)))]
        _flower(canvas, other, rng.uniform(0, SIZE, 2), rng.uniform(11, 20), scene)
    blurred = _sheet(canvas).filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 3)))
    canvas = _array(blurred.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))

    radius = rng.uniform(68, 86)
    at = _SIDE / 2 + rng.uniform(-10, 10, 2)
    canvas = _stem(canvas, at, radius, scene) if rng.random() < 0.75 else canvas
    x = np.arange(_SIDE, dtype=np.float32)[None, :]
    y = np.arange(_SIDE, dtype=np.float32)[:, None]
    fall_x, fall_y = (at - 10 * scene.light).tolist()
    fall = np.exp(-(((x - fall_x) / (0.85 * radius)) ** 2)) * np.exp(-(((y - fall_y) / (0.85 * radius)) ** 2))
    canvas *= 1 - 0.45 * fall
    _flower(canvas, _SPECIES[label], at, radius, scene)

    small = canvas.reshape(3, SIZE, 2, SIZE, 2).mean((2, 4))
    warmth = rng.normal(0, 0.05)
    tint = rng.uniform(0.88, 1.25) * np.array([1 + warmth, 1, 1 - warmth], np.float32)[:, None, None]
    veil = 1 + 0.3 * ((x[:, ::2] / _SIDE - 0.5) * scene.light[0] + (y[::2] / _SIDE - 0.5) * scene.light[1])
    if rng.random() < 0.4:  # dappled shade
        veil = veil * (1 - rng.uniform(0.2, 0.45) * _smooth(_noise(rng, 3, 1), 0.0, 0.35))
    grain = rng.normal(0, 0.008, (SIZE, SIZE)).astype(np.float32)
    return _sheet(small * veil * tint + grain)


def _image_seed(seed: int, split: int, index: int) -> int:
    return (seed * 8 + split) * 1_000_000 + index


def write_archive(path: Path, *, train: int, val: int, test: int, seed: int = 0) -> None:
    """Writes a zip of `train/<class>/0001.jpg`, `val/...`, `test/...`, so many images of each class.

    The same arguments give the same bytes. ValueError for a negative count or seed, OSError where `path`
    cannot be written.
    """
    if min(train, val, test, seed) < 0:
        raise ValueError("counts and the seed must not be negative")
    with zipfile.ZipFile(path, "w") as archive:
        for split, (folder, count) in enumerate((("train", train), ("val", val), ("test", test))):
            for label, name in enumerate(CLASS_NAMES):
                for index in range(1, count + 1):
                    buffer = io.BytesIO()
                    draw(label, _image_seed(seed, split, index)).save(buffer, "JPEG", quality=90)
                    # A fixed time, and no compression: JPEG has none left to give.
                    entry = zipfile.ZipInfo(f"{folder}/{name}/{index:04d}.jpg", (2020, 1, 1, 0, 0, 0))
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, buffer.getvalue())


def write_gallery(path: Path, rows: int = 8, seed: int = 0) -> None:
    """Writes a contact sheet (PNG): one column per class, `rows` pictures of each."""
    cell = SIZE + 4
    sheet = Image.new("RGB", (cell * len(CLASS_NAMES) + 4, cell * rows + 4), "white")
    for row in range(rows):
        for label in range(len(CLASS_NAMES)):
            sheet.paste(draw(label, _image_seed(seed, 3, row)), (4 + label * cell, 4 + row * cell))
    sheet.save(path, "PNG")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `python -m bpt_core.samples OUT.zip`."""
    parser = argparse.ArgumentParser(prog="python -m bpt_core.samples", description=__doc__)
    parser.add_argument("out", type=Path, help="the zip to write")
    for split, count in (("train", 40), ("val", 20), ("test", 20)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images per class (default {count})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gallery", type=Path, help="also write a contact sheet (PNG) here")
    given = parser.parse_args(arguments)
    write_archive(given.out, train=given.train, val=given.val, test=given.test, seed=given.seed)
    if given.gallery:
        write_gallery(given.gallery, seed=given.seed)
    each = given.train + given.val + given.test
    sys.stdout.write(f"{given.out}: {each * len(CLASS_NAMES)} images of {len(CLASS_NAMES)} classes\n")


if __name__ == "__main__":
    main()
