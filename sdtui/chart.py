"""Draws curves with Braille dots, or plain characters, as rows of text; knows neither screens nor files.

Dimension key: C dot columns, R dot rows, W cells across, H cells down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdtui.format import number_scientific
from sdtui.series import Series

_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Of a Braille character: 4 down, 2 across.
_MARGIN = 6  # Cells for the labels of the y axis and the axis itself.
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)

Span = tuple[str, str]  # Text, and the name of its style.


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A series to draw in a style, raw or smoothed; later traces lie on top. A tag marks its right end."""

    series: Series
    style: str
    is_smoothed: bool = False
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The part of a run that is shown: steps from `first` to `last`, and how."""

    first: float
    last: float
    is_log: bool = False
    is_ascii: bool = False
    cursor: float | None = None
    marks: Sequence[tuple[int, str]] = ()
    """Steps and the character that stands under them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A drawn chart: rows of spans, and where its plot begins and how wide it is, in cells."""

    rows: list[list[Span]]
    left: int
    width: int


def draw(traces: Sequence[Trace], view: View, *, width: int, height: int) -> Frame:
    """Draw traces into `width` by `height` cells, axes included."""
    rows, cells = max(1, height - 1), max(1, width - _MARGIN)
    spans = [trace_extremes(trace, view, columns=cells * 2) for trace in traces]
    low, high = value_range(spans, is_log=view.is_log)
    has_values = any(not np.isnan(lows_C).all() for lows_C, _highs_C in spans)
    labels = y_labels(low, high, rows=rows, is_log=view.is_log) if has_values else {}
    codes_HW, owners_HW = np.zeros((rows, cells), np.uint8), np.full((rows, cells), -1, np.int8)
    for owner, (lows_C, highs_C) in enumerate(spans):
        bottoms_C, tops_C = (_to_rows(values_C, low, high, rows * 4) for values_C in (lows_C, highs_C))
        drawn_HW = _braille(bottoms_C, tops_C, rows)
        is_drawn_HW = drawn_HW > 0
        # A cell has one colour. An average takes the whole cell from its raw values and so stays a thin line.
        covers = owner > 0 and traces[owner].series is traces[owner - 1].series
        np.copyto(codes_HW, drawn_HW if covers else codes_HW | drawn_HW, where=is_drawn_HW)
        owners_HW[is_drawn_HW] = owner
    canvas = _Canvas(traces, view, codes_HW, owners_HW)
    axis = ("|", "+") if view.is_ascii else ("\u2502", "\u2524")
    lines = [
        [(labels.get(row, "").rjust(_MARGIN - 1) + axis[row in labels], "axis"), *cells_spans]
        for row, cells_spans in enumerate(canvas.rows())
    ]
    lines.append(_x_axis(view, cells))
    return Frame(rows=lines[:height], left=_MARGIN, width=cells)


def trace_extremes(trace: Trace, view: View, *, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and greatest value (C,) in each dot column, as logarithms where the view is logarithmic."""
    series = trace.series
    pyramid = series.smoothed if trace.is_smoothed else series.raw
    if not len(pyramid):
        return np.full(columns, np.nan, "<f4"), np.full(columns, np.nan, "<f4")
    borders = np.linspace(view.first, view.last, columns + 1)
    # The last column holds its right border too.
    borders[-1] += 1
    lows_C, highs_C = pyramid.extremes(series.edges(borders))
    if not view.is_log:
        return lows_C, highs_C
    return tuple(np.log10(np.where(values_C > 0, values_C, np.nan)) for values_C in (lows_C, highs_C))  # type: ignore[return-value]


def value_range(spans: Sequence[tuple[NDArray[Any], NDArray[Any]]], *, is_log: bool) -> tuple[float, float]:
    """Return bottom and top of the chart with a little room, whatever is drawn."""
    lows = [float(np.nanmin(lows_C)) for lows_C, _ in spans if not np.isnan(lows_C).all()]
    highs = [float(np.nanmax(highs_C)) for _, highs_C in spans if not np.isnan(highs_C).all()]
    if not lows:
        return 0.0, 1.0
    low, high = min(lows), max(highs)
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    # Zero stays the floor of what is never negative.
    floor = 0.0 if low >= 0 and not is_log else -math.inf
    return max(floor, low - room), high + room


def _to_rows(values_C: NDArray[Any], low: float, high: float, rows: int) -> NDArray[Any]:
    """Return dot rows counted from the top, -1 where there is no value; gaps inside a curve are bridged."""
    rows_C = (high - values_C.astype(np.float64)) / (high - low) * (rows - 1)
    is_missing_C = np.isnan(rows_C)
    if is_missing_C.any():
        there = np.flatnonzero(~is_missing_C)
        if len(there):
            inside = np.arange(there[0], there[-1] + 1)
            rows_C[inside] = np.interp(inside, there, rows_C[there])
        rows_C[np.isnan(rows_C)] = -1
    return np.rint(rows_C).astype(np.int16)


def _braille(bottoms_C: NDArray[Any], tops_C: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return the Braille bits (H, W) of a curve that runs through each column from its bottom to its top dot row."""
    # Neighbours must touch, so a jump between two columns is drawn as a stroke.
    joins = (tops_C[1:] >= 0) & (tops_C[:-1] >= 0)
    higher_C, lower_C = tops_C.copy(), bottoms_C.copy()
    higher_C[1:] = np.where(joins, np.minimum(tops_C[1:], bottoms_C[:-1]), tops_C[1:])
    lower_C[1:] = np.where(joins, np.maximum(bottoms_C[1:], tops_C[:-1]), bottoms_C[1:])
    row_R = np.arange(rows * 4, dtype=np.int16)[:, None]
    mask_RC = ((row_R >= higher_C) & (row_R <= lower_C)).view(np.uint8)
    bits_HW = np.zeros((rows, len(tops_C) // 2), np.uint8)
    for down, pair in enumerate(_DOT_BITS):
        for across, bit in enumerate(pair):
            bits_HW |= mask_RC[down::4, across::2] * np.uint8(bit)
    return bits_HW


class _Canvas:
    """Turns cells into rows of spans."""

    def __init__(self, traces: Sequence[Trace], view: View, codes_HW: NDArray[Any], owners_HW: NDArray[Any]) -> None:
        self._view = view
        self._styles = [trace.style for trace in traces]
        if view.is_ascii:
            fills = np.array([ord("#" if trace.is_smoothed else ":") for trace in traces] + [ord(" ")], np.uint32)
            self._glyphs_HW = fills[owners_HW]
        else:
            self._glyphs_HW = np.where(codes_HW > 0, codes_HW + np.uint32(0x2800), np.uint32(ord(" ")))
        self._owners_HW = owners_HW
        self._tag(traces)
        self._draw_cursor()

    def _tag(self, traces: Sequence[Trace]) -> None:
        """Write each trace's tag at its right end, so that curves differ by more than colour."""
        for owner, trace in enumerate(traces):
            rows, columns = np.nonzero(self._owners_HW == owner)
            if trace.tag and len(columns):
                last = int(columns.argmax())
                self._glyphs_HW[rows[last], columns[last]] = ord(trace.tag[0])

    def _draw_cursor(self) -> None:
        view, width = self._view, self._owners_HW.shape[1]
        if view.cursor is None or not view.first <= view.cursor <= view.last:
            return
        column = column_of(view.cursor, view, width)
        empty = self._owners_HW[:, column] < 0
        self._glyphs_HW[empty, column] = ord("|") if view.is_ascii else 0x2502
        self._owners_HW[empty, column] = len(self._styles)

    def rows(self) -> list[list[Span]]:
        """Return all rows of cells, each in runs of one style."""
        height, width = self._owners_HW.shape
        text = self._glyphs_HW.tobytes().decode("utf-32")
        styles = [*self._styles, "cursor", "empty"]
        borders = [[0] for _ in range(height)]
        found = np.nonzero(self._owners_HW[:, 1:] != self._owners_HW[:, :-1])
        for row, column in zip(*(places.tolist() for places in found), strict=True):
            borders[row].append(column + 1)
        rows = []
        for row, owners in enumerate(self._owners_HW.tolist()):
            base = row * width
            pairs = pairwise((*borders[row], width))
            rows.append([(text[base + first : base + last], styles[owners[first]]) for first, last in pairs])
        return rows


def column_of(step: float, view: View, width: int) -> int:
    """Return the cell column of a step."""
    share = (step - view.first) / max(view.last - view.first, 1e-9)
    return min(width - 1, max(0, int(share * width)))


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    raw = (high - low) / max(count, 1)
    if not 0 < raw < math.inf:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in _NICE if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def y_labels(low: float, high: float, *, rows: int, is_log: bool) -> dict[int, str]:
    """Return the label of each cell row that has one."""
    count = max(2, rows // 2)
    if is_log:
        # Round values between the ends, even when they lie within one decade.
        bottom, top = 10.0**low, 10.0**high
        decades = range(math.floor(low), math.ceil(high) + 1)
        values = [factor * 10.0**decade for decade in decades for factor in (1.0, 2.0, 5.0)]
        values = [value for value in values if bottom <= value <= top]
        values = values if len(values) > 1 else nice_ticks(bottom, top, count)
        places = [(math.log10(value), value) for value in values if value > 0]
    else:
        places = [(value, value) for value in nice_ticks(low, high, count)]
    span = max(abs(value) for _place, value in places) if places else 1.0
    step = abs(places[1][1] - places[0][1]) if len(places) > 1 and not is_log else 0.0
    rounded = {int((high - place) / (high - low) * (rows - 1) + 0.5): value for place, value in places}
    return {
        row: tick_label(value, span=span, step=step)[: _MARGIN - 1] for row, value in rounded.items() if 0 <= row < rows
    }


def tick_label(value: float, *, span: float, step: float = 0.0) -> str:
    """Return a tick's label: .08, 1.5, 3e-5."""
    if value == 0:
        return "0"
    if span < 0.01 or span >= 1e5:
        return number_scientific(float(f"{value:.2g}"))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else max(0, 1 - math.floor(math.log10(abs(value))))
    if step and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    text = f"{value:.{decimals}f}"
    return text[1:] if text.startswith("0.") else text


def _x_axis(view: View, cells: int) -> list[Span]:
    corner, line = ("+", "-") if view.is_ascii else ("\u2514", "\u2500")
    axis = [line] * cells
    for tick in nice_ticks(view.first, view.last, max(1, cells // 14)):
        if tick != round(tick):
            continue  # There is no step between two steps.
        label = f"{tick:.0f}"
        start = column_of(tick, view, cells)
        if start + len(label) <= cells:
            axis[start : start + len(label)] = label
    styles = ["axis"] * cells
    for step, mark in view.marks:
        if view.first <= step <= view.last:
            column = column_of(step, view, cells)
            # A mark gives way to a number, by a few cells at most.
            free = [place for place in range(max(0, column - 4), min(cells, column + 5)) if not axis[place].isdigit()]
            if free:
                column = min(free, key=lambda place: abs(place - column))
                axis[column], styles[column] = mark, "mark"
    spans: list[Span] = [(" " * (_MARGIN - 1) + corner, "axis")]
    for character, style in zip(axis, styles, strict=True):
        if spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + character, style)
        else:
            spans.append((character, style))
    return spans
