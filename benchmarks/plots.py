"""Plots of the report as inline SVG, drawn with the page's own colours so that they follow light and dark.

Every plot has a title and a description for readers who do not see it.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from statistics import fmean

WIDTH, LEFT, RIGHT, ROW = 640, 190, 20, 26
Points = Sequence[Sequence[float]]
_identifiers = count()


def dots(rows: dict[str, list[float]], label: str, description: str) -> str:
    """One line a row, one dot a seed, a bar at the mean."""
    low, high = _range([value for values in rows.values() for value in values])
    body = [_x_axis(low, high, ROW * len(rows) + 8, label)]
    for index, (name, values) in enumerate(rows.items()):
        y = ROW * index + ROW // 2
        body.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(_short(name))}</text>')
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        body += [f'<circle class="c{index % 6}" cx="{_x(v, low, high):.1f}" cy="{y}" r="4.5"/>' for v in values]
        if values:
            x = _x(fmean(values), low, high)
            body.append(f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{y + 9}"/>')
    return _svg(body, ROW * len(rows) + 46, label, description)


def interval(gaps: list[float], bounds: tuple[float, float] | None, margin: float, label: str, description: str) -> str:
    """The gap of every seed, their mean and interval, against zero (and the margin of a non-inferiority claim)."""
    marks = {0.0, -margin}
    low, high = _range([*gaps, *(bounds or ()), *marks])
    y = ROW // 2
    body = [_x_axis(low, high, ROW + 8, label)]
    body.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">gap, 95 % interval</text>')
    for mark in marks:
        x = _x(mark, low, high)
        body.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{ROW + 8}"/>')
    if bounds:
        first, last = (_x(bound, low, high) for bound in bounds)
        body.append(f'<line class="interval" x1="{first:.1f}" x2="{last:.1f}" y1="{y}" y2="{y}"/>')
    body += [f'<circle class="c0" cx="{_x(gap, low, high):.1f}" cy="{y}" r="4"/>' for gap in gaps]
    x = _x(fmean(gaps), low, high)
    body.append(f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{y + 9}"/>')
    return _svg(body, ROW + 46, label, description)


def curves(lines: Mapping[str, Sequence[Points]], label: str, description: str) -> str:
    """Learning curves: for every arm one line a seed, against the training step."""
    points = [point for seeds in lines.values() for line in seeds for point in line]
    low, high = _range([y for _, y in points])
    start, end = min(x for x, _ in points), max(x for x, _ in points)
    height, left = 200, 70

    def place(point: Sequence[float]) -> str:
        x = left + (point[0] - start) / ((end - start) or 1) * (WIDTH - RIGHT - left)
        return f"{x:.1f},{height - (point[1] - low) / (high - low) * (height - 10):.1f}"

    body = []
    for tick in ticks(low, high):
        y = height - (tick - low) / (high - low) * (height - 10)
        body.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    body.append(f'<text x="{left}" y="{height + 18}">step {start:g}</text>')
    body.append(f'<text x="{WIDTH - RIGHT}" y="{height + 18}" text-anchor="end">step {end:g}</text>')
    for index, (name, seeds) in enumerate(lines.items()):
        for line in seeds:
            body.append(f'<polyline class="l{index % 6}" points="{" ".join(map(place, line))}"/>')
        x, y = left + 185 * (index % 3), height + 40 + 18 * (index // 3)
        body.append(f'<line class="l{index % 6}" x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}"/>')
        body.append(f'<text x="{x + 28}" y="{y}">{escape(_short(name))}</text>')
    return _svg(body, height + 34 + 18 * math.ceil(len(lines) / 3), label, description)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], about so many."""
    raw = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT)


def _x_axis(low: float, high: float, y: float, label: str) -> str:
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for tick in ticks(low, high):
        x = _x(tick, low, high)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{y + 34}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"


def _svg(body: list[str], height: float, title: str, description: str) -> str:
    name = f"plot{next(_identifiers)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
        f"{''.join(body)}</svg>"
    )
