from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from orchd.demo.charts import LABEL_GAP, PERCENT, Line, line_chart, loss_axis


@pytest.mark.parametrize("values", [[8.5, 0.07], [0.0021, 8.4], [1.0, 1.0], [12.0, 3.0]])
def test_loss_axis_encloses_the_values(values: list[float]) -> None:
    axis = loss_axis(values)
    assert axis.ticks[0] <= min(values)
    assert axis.ticks[-1] >= max(values)
    assert all(0 <= axis.position(value) <= 1 for value in values)


def test_equal_ratios_are_equally_far_apart() -> None:
    axis = loss_axis([0.01, 10])
    assert axis.position(1) - axis.position(0.1) == pytest.approx(axis.position(10) - axis.position(1))


def test_labels_at_the_same_height_do_not_touch() -> None:
    lines = [Line(label=name, colour="a", values=(0.0, 0.0)) for name in ("one", "two", "three")]
    drawn = line_chart(lines, PERCENT, ["base", "round 1"], title="t")
    heights = [float(y) for y in re.findall(r'class="end"[^>]* y="([\d.]+)"', drawn)]
    assert [b - a for a, b in itertools.pairwise(heights)] == [LABEL_GAP, LABEL_GAP]


def test_chart_is_well_formed_and_escapes() -> None:
    drawn = line_chart([Line(label="<a&b>", colour="a", values=(None, 50.0))], PERCENT, ["<0>", "1"], title='"')
    ElementTree.fromstring(drawn)
