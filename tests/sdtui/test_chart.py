"""The chart: rows of text of the asked size, whatever is drawn."""

import numpy as np
import pytest

from sdtui.chart import Trace, View, draw, nice_ticks, tick_label
from sdtui.series import Series


def series_of(values, decay=0.98):
    series = Series("loss", decay)
    series.append(np.arange(1, len(values) + 1), np.asarray(values, float))
    return series


def text_of(frame):
    return ["".join(text for text, _style in row) for row in frame.rows]


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 5, [np.nan] * 3, [1e-9, 1e9], [-1.0, 2.0]])
@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("size", [(8, 3), (30, 8), (200, 60)])
def test_every_row_is_as_wide_as_asked(values, is_log, size):
    """No data and odd data keep the layout."""
    series = series_of(values)
    traces = [Trace(series=series, style="raw"), Trace(series=series, style="smooth", is_smoothed=True)]
    view = View(first=0, last=max(1, len(values)), is_log=is_log, cursor=1, marks=[(1, "^")])

    frame = draw(traces, view, width=size[0], height=size[1])

    assert [size[0]] * size[1] == [len(row) for row in text_of(frame)]


def test_one_peak_in_a_million_steps_reaches_the_top():
    """Downsampling never loses a peak."""
    values = np.full(1_000_000, 0.1)
    values[777_777] = 3.0
    frame = draw([Trace(series=series_of(values, 0), style="raw")], View(first=0, last=1e6), width=80, height=12)
    rows = text_of(frame)
    top = next(row for row in rows if any(0x2800 < ord(char) < 0x2900 for char in row))

    column = next(place for place, char in enumerate(top) if 0x2800 < ord(char) < 0x2900)
    assert abs((column - frame.left) / frame.width - 0.7777) < 0.03
    assert top in rows[:2]


def test_ascii_charts_hold_nothing_else():
    """A terminal without UTF-8 gets plain characters, raw and smoothed told apart by shape."""
    series = series_of(np.random.default_rng(0).random(500))
    traces = [Trace(series=series, style="raw"), Trace(series=series, style="smooth", is_smoothed=True)]

    text = "\n".join(text_of(draw(traces, View(first=0, last=500, is_ascii=True, cursor=3), width=60, height=10)))

    assert text.isascii()
    assert "#" in text
    assert ":" in text


def test_overlaid_curves_carry_their_letter():
    """Curves differ by more than colour."""
    traces = [
        Trace(series=series_of([level] * 50), style=f"s{number}", tag=tag)
        for number, (level, tag) in enumerate([(1.0, "a"), (2.0, "b")])
    ]
    text = "\n".join(text_of(draw(traces, View(first=0, last=50), width=60, height=10)))

    assert "a" in text
    assert "b" in text


def test_logarithmic_axis_is_labelled_by_values():
    """Labels show the value, not its logarithm."""
    frame = draw(
        [Trace(series=series_of([1, 10, 100], 0), style="raw")], View(first=0, last=3, is_log=True), width=40, height=12
    )

    assert {"1.0", "10", "100"} <= {row[0][0][:-1].strip() for row in frame.rows}


def test_ticks_are_round():
    """People read 0.05, not 0.0437."""
    assert nice_ticks(0, 100, 4) == [0, 25, 50, 75, 100]
    assert [
        tick_label(value, span=span, step=step)
        for value, span, step in [
            (0, 1, 1),
            (0.05, 0.2, 0.05),
            (0.15, 0.2, 0.025),
            (1e-4, 1e-4, 5e-5),
            (1500, 2000, 500),
        ]
    ] == ["0", ".05", ".150", "1e-4", "1500"]


def test_a_chart_without_values_claims_none():
    text = "".join(text_of(draw([], View(first=0, last=1), width=60, height=10)))

    assert {char for char in text if char.isdigit()} <= {"0", "1"}, "steps are whole, and there is no value yet"
    assert "." not in text
