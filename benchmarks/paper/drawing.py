"""Curves and histograms as SVG: text that a repository holds, in colours that show on white and on black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 190, 30, 44  # the legend stands on the right
# Okabe and Ito's, which colour-blind people can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("", "6 3", "2 2")

Points = Sequence[tuple[float, float]]


def chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """Each line by its name in the legend. Lines need two points among them that differ in x."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    (x_low, x_high), (y_low, y_high) = (min(xs), max(xs)), _round_out(min(ys), max(ys))
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x_low) / ((x_high - x_low) or 1) * (right - _LEFT)
        return f"{across:.1f},{bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP):.1f}"

    middle = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#808080" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="16" font-size="13">{escape(title)}</text>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#808080"/>',
        f'<text x="{middle[0]}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {middle[1]}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = x_low + share * (x_high - x_low), y_low + share * (y_high - y_low)
        across, up = place(x, y).split(",")
        parts.append(f'<text x="{across}" y="{bottom + 15}" text-anchor="middle">{x:.4g}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(up) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for index, (name, points) in enumerate(lines.items()):
        style = f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-dasharray="{_DASHES[index // len(COLOURS) % 3]}"'
        path = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke-width="2" {style}/>')
        at = _TOP + 8 + 16 * index
        parts.append(f'<path d="M{right + 12} {at}h22" stroke-width="2" {style}/>')
        parts.append(f'<text x="{right + 40}" y="{at + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _round_out(low: float, high: float) -> tuple[float, float]:
    """A little more than the range, so that no line lies on the frame."""
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
