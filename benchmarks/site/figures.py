"""Figures of the report: matplotlib drawings as inline SVG, in colours of the page that follow light and dark.

Every figure is an image with a title and a description for readers who do not see it; its text stays text, and equal
input gives equal bytes. `name` keeps the ids of one figure apart from those of the others on its page.
"""

import base64
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from statistics import fmean
from typing import Any

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

Points = Sequence[Sequence[float]]

# Colours that stand for the page's custom properties (style.css) until the drawing is SVG.
INK, DIM, LINE, PAPER = "#010001", "#010002", "#010003", "#010004"
ARMS = ("#020000", "#020001", "#020002", "#020003", "#020004", "#020005")
PROPERTIES = {INK: "ink", DIM: "dim", LINE: "line", PAPER: "card"} | {c: f"k{i}" for i, c in enumerate(ARMS)}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1)), (0, (9, 3)))

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "encore",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": DIM,
    "axes.labelcolor": DIM,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
}
WIDTH = 400
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def values_and_gap(
    rows: Mapping[str, Sequence[float]],
    gaps: Sequence[float],
    interval: tuple[float, float] | None,
    margin: float,
    labels: tuple[str, str],
    title: str,
    description: str,
    name: str,
) -> str:
    """Above, a line an arm with a dot for every seed and a bar at their mean; below, the gap of every seed with its
    mean and interval, against zero and the margin of a non-inferiority claim.

    labels: of the two axes. An empty `gaps` leaves the lower part out.
    """
    row, below = 36, 96 if gaps else 0
    height = row * len(rows) + 46 + below
    with _figure(WIDTH, height) as figure:
        axes = _axes(figure, 8, 46 + below, 8, 0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for index, (label, values) in enumerate(rows.items()):
            colour, marker = ARMS[index % len(ARMS)], MARKERS[index % len(MARKERS)]
            axes.axhline(index + 0.2, color=LINE, linewidth=0.8, zorder=0)
            axes.plot(values, [index + 0.2] * len(values), marker, color=colour, markersize=7, alpha=0.8, mew=0)
            axes.plot([fmean(values)], [index + 0.2], "|", color=INK, markersize=16, mew=2)
            axes.annotate(
                _short(label, 48), (0, index + 0.2), (2, 9), ("axes fraction", "data"), textcoords="offset points"
            )
        _scale(axes, [value for values in rows.values() for value in values], labels[0])
        if gaps:
            axes = _axes(figure, 8, 46, 8, height - below + 8)
            axes.set_ylim(-1, 1)
            marks = {0.0, -margin}
            for mark in marks:
                axes.axvline(mark, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
            if interval:
                axes.plot(interval, [0, 0], color=INK, linewidth=2, alpha=0.6)
            axes.plot(gaps, [0] * len(gaps), "o", color=ARMS[0], markersize=7, alpha=0.8, mew=0)
            axes.plot([fmean(gaps)], [0], "|", color=INK, markersize=18, mew=2.5)
            _scale(axes, [*gaps, *(interval or ()), *marks], labels[1])
        return _svg(figure, title, description, name)


def curves(lines: Mapping[str, Sequence[Points]], label: str, title: str, description: str, name: str) -> str:
    """Learning curves: for every arm one line a seed, against the training step. label: of the vertical axis."""
    legend = 20 * len(lines)
    height = 216 + legend
    with _figure(WIDTH, height) as figure:
        axes = _axes(figure, 54, 44 + legend, 8, 22)
        for index, (arm, seeds) in enumerate(lines.items()):
            style: dict[str, Any] = {"color": ARMS[index % len(ARMS)], "linestyle": DASHES[index % len(DASHES)]}
            for line in seeds:
                axes.plot(*zip(*line), linewidth=1.3, alpha=0.85, **style)
            y = legend - 10 - 20 * index
            figure.add_artist(mpl.lines.Line2D([54 / WIDTH, 82 / WIDTH], [y / height] * 2, linewidth=2, **style))
            figure.text(90 / WIDTH, y / height, _short(arm, 44), va="center")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step")
        axes.set_title(_short(label, 50), loc="left", fontsize=12, color=DIM, pad=8)
        return _svg(figure, title, description, name)


def against(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    labels: tuple[str, str],
    title: str,
    description: str,
    name: str,
    log: bool = False,
) -> str:
    """Ours against reported, a marker and a colour a group, with the line on which both are equal.

    groups: {group: [(reported, ours, what it is)]}, the last shown when the pointer rests on a point.
    """
    values = [value for points in groups.values() for point in points for value in point[:2]]
    low, high = (min(values) / 3, max(values) * 3) if log else _padded([*values, 0.0])
    legend = 20 * len(groups)
    with _figure(WIDTH, 380 + legend) as figure:
        axes = _axes(figure, 58, 48 + legend, 10, 8)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.plot([low, high], [low, high], color=DIM, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.minorticks_off()
        if log:
            axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
            axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        for index, (group, points) in enumerate(groups.items()):
            colour, marker = ARMS[index % len(ARMS)], MARKERS[(index + index // len(ARMS)) % len(MARKERS)]
            reported, ours, _ = zip(*points)
            drawn = axes.scatter(reported, ours, s=44, marker=marker, color=colour, alpha=0.75, linewidths=0)
            drawn.set_gid(f"tips{index}")
            x, y = (58 + 6) / WIDTH, (legend - 10 - 20 * index) / (380 + legend)
            figure.add_artist(mpl.lines.Line2D([x], [y], marker=marker, color=colour, markersize=7, mew=0))
            figure.text(x + 14 / WIDTH, y, _short(group, 44), va="center")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3)
        tips = [[tip for _, _, tip in points] for points in groups.values()]
        return _svg(figure, title, description, name, tips)


def past_gaps(
    entries: Sequence[tuple[str, float, tuple[float, float] | None]], title: str, description: str, name: str
) -> str:
    """The gap after each change of a record, oldest above, with its interval. entries: [(when, gap, interval)]."""
    height = 26 * len(entries) + 46
    with _figure(WIDTH, height) as figure:
        axes = _axes(figure, 92, 46, 8, 0)
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.axvline(0, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
        for index, (when, gap, interval) in enumerate(entries):
            if interval:
                axes.plot(interval, [index] * 2, color=INK, linewidth=2, alpha=0.6)
            axes.plot([gap], [index], "o", color=ARMS[0], markersize=7, mew=0)
            axes.annotate(
                when,
                (0, index),
                (-8, 0),
                ("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
            )
        bounds = [bound for _, _, interval in entries for bound in interval or ()]
        _scale(axes, [*(gap for _, gap, _ in entries), *bounds, 0.0], "gap in the paper's favour")
        return _svg(figure, title, description, name)


def ratios(
    rows: Sequence[tuple[str, Sequence[tuple[float, float, float]]]],
    kinds: Sequence[str],
    label: str,
    span: tuple[float, float],
    title: str,
    description: str,
    name: str,
) -> str:
    """For every row and kind a dot at the ratio and a line from low to high, against the line at 1.

    rows: [(row, [(ratio, low, high) a kind])]. label: of the axis, which reaches over `span` and 1.
    """
    row, legend = 20 + 12 * len(kinds), 20 * len(kinds)
    height = row * len(rows) + 46 + legend
    with _figure(WIDTH, height) as figure:
        axes = _axes(figure, 150, 46 + legend, 8, 0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.axvline(1, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
        for index, (what, cells) in enumerate(rows):
            axes.axhline(index + 0.5, color=LINE, linewidth=0.8, zorder=0)
            axes.annotate(
                _short(what, 22),
                (0, index),
                (-8, 0),
                ("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
            )
            for kind, (ratio, low, high) in enumerate(cells):
                y = index + 12 / row * (kind - (len(kinds) - 1) / 2)
                axes.plot([low, high], [y, y], color=ARMS[kind], linewidth=2, alpha=0.6)
                axes.plot([ratio], [y], MARKERS[kind], color=ARMS[kind], markersize=7, mew=0)
        for kind, what in enumerate(kinds):
            y = (legend - 10 - 20 * kind) / height
            mark = mpl.lines.Line2D([156 / WIDTH], [y], marker=MARKERS[kind], color=ARMS[kind], markersize=7, mew=0)
            figure.add_artist(mark)
            figure.text(170 / WIDTH, y, _short(what, 30), va="center")
        _scale(axes, [1.0, *span], label)
        return _svg(figure, title, description, name)


def power_law(
    x: Sequence[float], y: Sequence[float], exponent: float, label: str, title: str, description: str, name: str
) -> str:
    """Milliseconds a step (y) against x on logarithmic axes, and the fitted line, whose exponent is told above it."""
    with _figure(WIDTH, 250) as figure:
        axes = _axes(figure, 54, 44, 12, 26)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        middle = [float(np.exp(np.mean(np.log(values)))) for values in (x, y)]
        ends = [min(x), max(x)]
        line = [middle[1] * (end / middle[0]) ** exponent for end in ends]
        axes.plot(ends, line, color=DIM, linewidth=1.3, linestyle=(0, (4, 3)))
        axes.plot(x, y, "o", color=ARMS[0], markersize=7, mew=0)
        axes.set_xlim(min(x) / 1.2, max(x) * 1.2)
        axes.set_ylim(min(y) / 1.4, max(y) * 1.4)
        axes.set_xticks(x[:: 1 + len(x) // 8], [f"{value:g}" for value in x[:: 1 + len(x) // 8]])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(label)
        axes.set_title(
            f"ms a step; the line is {label} to the power {exponent:.2f}", loc="left", fontsize=12, color=DIM
        )
        return _svg(figure, title, description, name)


def graph(edges: Sequence[tuple[str, str]], title: str, description: str, name: str, marked: str = "") -> str:
    """Papers and what they build on: an arrow from the older idea down to the later one. `marked` is drawn bold.

    edges: [(paper, what it builds on)], without cycles.
    """
    directed = nx.DiGraph([(base, paper) for paper, base in edges])
    place: dict[str, tuple[float, float]] = {}
    left, lowest = 0, 0
    for family in sorted(nx.weakly_connected_components(directed), key=min):
        layers = [sorted(nodes) for nodes in nx.topological_generations(directed.subgraph(family))]
        wide = max(map(len, layers))
        for row, nodes in enumerate(layers):
            for column, node in enumerate(nodes):
                place[node] = (140 * (left + (column + 0.5) * wide / len(nodes)), 36.0 + 74 * row)
        left, lowest = left + wide, max(lowest, len(layers))
    width, height = max(140 * left, 140), 74 * lowest
    with _figure(width, height) as figure:
        axes = _axes(figure, 0, 0, 0, 0)
        axes.axis("off")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        for base, paper in directed.edges:
            arrow = FancyArrowPatch(
                place[base], place[paper], arrowstyle="-|>", mutation_scale=12, color=DIM, shrinkA=16, shrinkB=16
            )
            axes.add_patch(arrow)
        for node, (x, y) in place.items():
            box = {"boxstyle": "round,pad=0.5", "facecolor": PAPER, "edgecolor": ARMS[0] if node == marked else LINE}
            weight = "bold" if node == marked else "normal"
            axes.text(x, y, _short(node, 20), ha="center", va="center", fontweight=weight, bbox=box)
        return _svg(figure, title, description, name)


def drawing(
    points: Points, paths: Mapping[str, Sequence[int]], title: str, description: str, name: str, closed: bool = True
) -> str:
    """Points of the plane, and polygons through some of them by index, each in a line of its own kind."""
    legend = 20 * len(paths)
    side, height = 240, 240 + legend
    with _figure(side, height) as figure:
        axes = _axes(figure, 8, 8 + legend, 8, 8)
        axes.set_aspect("equal")
        axes.axis("off")
        x, y = zip(*points)
        for index, (label, path) in enumerate(paths.items()):
            style: dict[str, Any] = {"color": ARMS[index % len(ARMS)], "linestyle": DASHES[index % len(DASHES)]}
            corners = [*path, path[0]] if closed and path else list(path)
            axes.plot(
                [x[i] for i in corners], [y[i] for i in corners], linewidth=(5, 1.8)[index > 0], zorder=index + 1,
                alpha=(0.35, 1)[index > 0], **{**style, "linestyle": style["linestyle"] if index else "-"},
            )  # fmt: skip
            level = (legend - 10 - 20 * index) / height
            line = mpl.lines.Line2D([8 / side, 34 / side], [level] * 2, linewidth=(5, 1.8)[index > 0], **style)
            line.set_alpha((0.35, 1)[index > 0])
            line.set_linestyle(style["linestyle"] if index else "-")
            figure.add_artist(line)
            figure.text(42 / side, level, _short(label, 30), va="center")
        axes.plot(x, y, "o", color=INK, markersize=5, mew=0, zorder=9)
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        return _svg(figure, title, description, name)


def spectrogram(png: str, tokens: Sequence[Sequence[int]], title: str, description: str, name: str) -> str:
    """A spectrogram (base64 of a png, low frequencies at the bottom) and below it the token of each of its patches.

    tokens: rows of patches from high frequency to low, each from left to right in time. Equal tokens share a colour.
    """
    picture = imread(io.BytesIO(base64.b64decode(png)), format="png")
    rows, columns = len(tokens), len(tokens[0])
    width, cell = 34 * columns + 44, 24
    height = 2 * cell * rows + 66
    with _figure(width, height) as figure:
        upper = _axes(figure, 40, cell * rows + 52, 4, 4)
        upper.imshow(picture, aspect="auto", cmap="magma", interpolation="none")
        lower = _axes(figure, 40, 30, 4, cell * rows + 22)
        known = sorted({token for row in tokens for token in row})
        shades = np.array([[known.index(token) % 6 for token in row] for row in tokens])
        for (row, column), shade in np.ndenumerate(shades):
            box = mpl.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, color=ARMS[int(shade)], alpha=0.25, lw=0)
            lower.add_patch(box)
            lower.text(column, row, str(tokens[row][column]), ha="center", va="center", fontsize=11)
        lower.set_xlim(-0.5, columns - 0.5)
        lower.set_ylim(rows - 0.5, -0.5)
        for axes, label in ((upper, "log-mel"), (lower, "tokens")):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_ylabel(label)
        lower.set_xlabel("time")
        return _svg(figure, title, description, name)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many CSS pixels."""
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that the layout font lacks, the reader's has
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        yield figure


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with so many pixels of room around them."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    axes.patch.set_visible(False)
    return axes


def _scale(axes: Axes, values: Sequence[float], label: str) -> None:
    """A horizontal axis that holds the values, and no other spine."""
    axes.set_xlim(*_padded(values))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks([])
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_xlabel(_short(label, 58))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low)
    if not pad > 1e-9 * max(abs(low), abs(high)):
        pad = 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _titled(words: Iterator[str], mark: re.Match[str]) -> str:
    return f"{mark[1]}><title>{escape(next(words))}</title></use>"


def _power_of_ten(value: float, _: int | None) -> str:
    return "10" + f"{round(np.log10(value))}".translate(RAISED)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(figure: Figure, title: str, description: str, name: str, tips: Sequence[Sequence[str]] = ()) -> str:
    """The figure as an <svg> element without what only a file of its own needs.

    tips: what to show when the pointer rests on the points of the collection with the gid tips0, tips1, ...
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index("<g id=") : text.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    for index, points in enumerate(tips):
        before, after = body.split(f'<g id="tips{index}">')
        words = iter(points)
        body = before + "<g>" + re.sub(r"(<use [^>]*)/>", partial(_titled, words), after, count=len(points))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{escape(name)}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{escape(name)}-", body)
    for colour, variable in PROPERTIES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r'font-family: [^;"]*;? ?', "", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = figure.get_size_inches() * 72
    name = escape(name)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width: {width:.0f}px"'
    label = f'role="img" aria-labelledby="{name}-t {name}-d"'
    head = (
        f'<title id="{escape(name)}-t">{escape(title)}</title><desc id="{escape(name)}-d">{escape(description)}</desc>'
    )
    return f"<svg {size} {label}>{head}{body}</svg>"
