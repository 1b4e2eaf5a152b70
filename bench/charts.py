"""Bar charts as SVG, drawn from the figures alone: no fonts, scripts or images from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.figures import Series

_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 760, 250, 130, 22, 12
_COLOURS = ("#1f6feb", "#8b949e", "#bf8700", "#8250df")


def bars(title: str, all_series: Sequence[Series]) -> str:
    """One bar per series: the median, with a line from the least to the greatest round."""
    most = max(one.spread[1] for one in all_series) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = 44 + len(all_series) * (_BAR + _GAP)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="13">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold" fill="#1f2328">{escape(title)}</text>',
    ]
    for place, one in enumerate(all_series):
        parts += _bar(one, 40 + place * (_BAR + _GAP), scale, _COLOURS[min(place, len(_COLOURS) - 1)])
    return "\n".join([*parts, "</svg>", ""])


def _bar(one: Series, top: int, scale: float, colour: str) -> list[str]:
    middle = top + _BAR / 2
    least, greatest = (_LEFT + value * scale for value in one.spread)
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end" fill="#1f2328">{escape(one.name)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{max(one.median * scale, 1):.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<line x1="{least:.1f}" x2="{greatest:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="#1f2328"/>',
        (
            f'<text x="{max(greatest, _LEFT + one.median * scale) + 8:.1f}" y="{middle + 4:.1f}" fill="#1f2328">'
            f"{escape(number(one.median))} {escape(one.unit)}</text>"
        ),
    ]


def number(value: float) -> str:
    """A figure with three significant digits, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
