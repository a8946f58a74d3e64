"""Marks lie where the numbers are, text is escaped, and a figure names nothing that its page might name too."""

import re

import pytest

from benchmarks.site import figures

WORDS = {"title": "the title", "description": "the description", "name": "n"}
HOSTILE = {"title": "<i>t</i>", "description": '<i>"d"</i>', "name": "n"}


def marks(svg, colour):
    """[(x, y)] of the markers filled with one of the page's colours, in drawing order."""
    found = re.findall(rf'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--{colour}\)', svg)
    return [(float(x), float(y)) for x, y in found]


def paths(svg, colour):
    """Corner points [(x, y), ...] of the lines drawn in one of the page's colours, the marks of an axis left out."""
    drawn = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--{colour}\)', svg)
    corners = [[tuple(map(float, p)) for p in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line)] for line in drawn]
    return [line for line in corners if max(x for x, _ in line) > 10]


def values_and_gap(gaps=(1.0, 3.0), interval=(0.5, 3.5), margin=0.0):
    rows = {"method": [0.0, 50.0, 100.0], "<i>other</i>": [10.0, 10.0, 20.0]}
    return figures.values_and_gap(rows, gaps, interval, margin, ("<i>m</i>", "gap"), **HOSTILE)


def test_a_dot_a_seed_on_the_line_of_its_arm_with_a_bar_at_the_mean():
    svg = values_and_gap(gaps=())
    (a, b, c), other = marks(svg, "k0"), marks(svg, "k1")
    assert b[0] - a[0] == pytest.approx(c[0] - b[0])
    assert len(other) == 3
    assert other[0][0] == pytest.approx(a[0] + (c[0] - a[0]) / 10, abs=0.01)
    assert a[1] < other[0][1], "the first arm stands above"
    assert marks(svg, "ink")[0] == b


def test_gaps_lie_in_their_interval_beside_zero_and_the_margin():
    svg = values_and_gap(margin=1.0)
    first, second = (x for x, _ in marks(svg, "k0")[3:])
    ((low, _), (high, _)) = next(line for line in paths(svg, "ink") if len(line) == 2 and line[0][1] == line[1][1])
    margin, zero = sorted(line[0][0] for line in paths(svg, "dim") if len(line) == 2 and line[0][0] == line[1][0])
    assert margin < zero < low < first < second < high
    assert (first - zero) == pytest.approx((second - zero) / 3, abs=0.01)
    assert (zero - margin) == pytest.approx(first - zero, abs=0.01)


def test_a_learning_curve_goes_through_its_points():
    svg = figures.curves({"a": [[[0, 4.0], [10, 2.0], [20, 3.0]]]}, "loss", **WORDS)
    (start, middle, end) = next(line for line in paths(svg, "k0") if len(line) == 3)
    assert middle[0] - start[0] == pytest.approx(end[0] - middle[0], abs=0.01)
    assert (middle[1] - start[1]) == pytest.approx(2 * (middle[1] - end[1]), abs=0.01), "down is less"


@pytest.mark.parametrize("log", [False, True])
def test_a_point_whose_values_agree_lies_on_the_line_and_tells_what_it_is(log):
    groups = {"first": [(10.0, 10.0, "<i>same</i>"), (10.0, 20.0, "more")], "second": [(40.0, 20.0, "less")]}
    svg = figures.against(groups, ("reported", "ours"), **WORDS, log=log)
    tips = re.findall(r'<use href="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*><title>([^<]*)</title></use>', svg)
    (same, more, less) = ((float(x), float(y)) for x, y, _ in tips)
    assert [tip for *_, tip in tips] == ["&lt;i&gt;same&lt;/i&gt;", "more", "less"]
    (start, end) = next(line for line in paths(svg, "dim") if line[0][0] != line[1][0] and line[0][1] != line[1][1])
    slope = (end[1] - start[1]) / (end[0] - start[0])
    assert same[1] == pytest.approx(start[1] + slope * (same[0] - start[0]), abs=0.1)
    assert more[0] == same[0]
    assert more[1] == less[1] < same[1]


def test_a_ratio_lies_in_its_range_beside_the_line_at_one():
    rows = [("<i>first</i>", [(2.0, 1.5, 3.0), (1.0, 0.5, 1.5)]), ("second", [(3.0, 3.0, 3.0), (0.5, 0.5, 0.5)])]
    svg = figures.ratios(rows, ["training", "inference"], "times as fast", (0.5, 3.0), **WORDS)
    (first, second, _), (other, last, _) = marks(svg, "k0"), marks(svg, "k1")
    ((one, _), (_, _)) = next(line for line in paths(svg, "dim") if line[0][0] == line[1][0])
    assert other[0] == pytest.approx(one, abs=0.01), "a ratio of 1 lies on the line"
    assert last[0] < one < first[0] < second[0]
    assert first[0] - one == pytest.approx(second[0] - first[0], abs=0.01)
    assert first[1] < other[1] < second[1] < last[1]
    ((low, y), (high, _)) = paths(svg, "k0")[0]
    assert y == first[1]
    assert one < low < first[0] < high == second[0]
    assert "<i>" not in svg


def test_points_of_a_power_lie_on_its_line():
    svg = figures.power_law([64, 128, 256], [2.0, 8.0, 32.0], 2.0, "tokens", **WORDS)
    (a, b, c) = marks(svg, "k0")
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.01), "both axes are logarithmic"
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.01)
    (start, end) = next(line for line in paths(svg, "dim") if line[0][1] != line[1][1])
    assert [*start, *end] == pytest.approx([*a, *c], abs=0.01)
    assert ">ms a step; the line is tokens to the power 2.00</text>" in svg
    assert re.findall(r">(\d+)</text>", svg)[:3] == ["64", "128", "256"]


def test_a_paper_stands_below_what_it_builds_on_and_families_side_by_side():
    svg = figures.graph([("late", "early"), ("later", "late"), ("other", "root")], **WORDS, marked="late")
    place = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(\w+)</text>', svg)
    }
    assert place["early"][1] < place["late"][1] < place["later"][1]
    assert place["early"][0] == place["late"][0] < place["root"][0]
    assert re.search(r"font-weight: 700[^>]*>late<", svg)


def test_a_polygon_is_closed_through_the_points_it_names():
    svg = figures.drawing([[0, 0], [1, 0], [0, 1]], {"exact": [0, 1, 2], "found": [0, 2, 1]}, **WORDS)
    (exact,) = (line for line in paths(svg, "k0") if len(line) == 4)
    assert exact[0] == exact[3]
    assert exact[1][0] > exact[0][0] == exact[2][0]
    assert exact[2][1] < exact[0][1] == exact[1][1], "y points up"
    assert len(marks(svg, "ink")) == 3


def test_a_spectrogram_has_its_tokens_in_their_places():
    from common.gallery import png

    svg = figures.spectrogram(png(figures.np.zeros((4, 6))), [[11, 12, 13], [21, 22, 23]], **WORDS)
    place = {
        t: (float(x), float(y)) for x, y, t in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)<', svg)
    }
    assert place["11"][0] < place["12"][0] < place["13"][0]
    assert place["11"][1] < place["21"][1]
    assert 'href="data:image/png;base64,' in svg.replace("\n", "")


def test_text_is_escaped_and_nothing_of_a_figure_reaches_its_page():
    svg = values_and_gap()
    assert "<i>" not in svg
    assert '<title id="n-t">&lt;i&gt;t&lt;/i&gt;</title>' in svg
    assert "&lt;i&gt;other" in svg
    assert not re.search(r"<style|<metadata|xmlns|font-family|#01000|#02000|xlink", svg)
    assert all(name.startswith("n-") for name in re.findall(r' id="([^"]*)"', svg))
    assert svg == values_and_gap(), "equal input, equal bytes"


def test_amounts_of_money_are_no_formulas():
    svg = figures.curves({"$a_1$ and $b$": [[[0, 1.0], [1, 2.0]]]}, "cost in $", **WORDS)
    assert ">$a_1$ and $b$</text>" in svg
