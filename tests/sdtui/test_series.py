"""Series of a run: every window summarised from blocks equals the one summarised from all its values."""

import itertools

import numpy as np
import pytest

from sdtui.series import Pyramid, Series, smooth


def brute_force(values, edges):
    pairs = [values[first:last] for first, last in itertools.pairwise(edges)]
    return (
        [part.min() if len(part) else np.nan for part in pairs],
        [part.max() if len(part) else np.nan for part in pairs],
    )


@pytest.mark.parametrize("count", [1, 16, 17, 255, 5000])
def test_extremes_of_few_values_are_exact(count):
    """Where a column holds few values no block is used."""
    values = np.random.default_rng(count).random(count).astype("f4")
    pyramid = Pyramid()
    pyramid.append(values)
    edges = np.linspace(0, count, 400).astype(int)

    lows, highs = pyramid.extremes(edges)

    expected = brute_force(values, edges)
    np.testing.assert_array_equal(expected[0], lows)
    np.testing.assert_array_equal(expected[1], highs)


@pytest.mark.parametrize("size", [100, 3000, 300_000])
@pytest.mark.parametrize("columns", [1, 7, 188])
def test_a_single_spike_is_never_lost(size, columns):
    """Wherever one value stands out, it is the maximum of some column next to its own."""
    rng = np.random.default_rng(size)
    for place in (0, 1, size // 3, size - 1):
        values = rng.random(size).astype("f4")
        values[place] = 9.0
        pyramid = Pyramid()
        for part in np.array_split(values, 13):
            pyramid.append(part)

        edges = np.linspace(0, size, columns + 1).astype(int)
        _lows, highs = pyramid.extremes(edges)

        assert np.nanmax(highs) == 9.0
        own = int(np.searchsorted(edges, place, side="right")) - 1
        assert abs(int(np.nanargmax(highs)) - own) <= 1


def test_appending_in_pieces_equals_appending_at_once():
    """Blocks that are still filling are brought up to date."""
    values = np.random.default_rng(0).random(10_000).astype("f4")
    whole, pieces = Pyramid(), Pyramid()
    whole.append(values)
    for start in range(0, 10_000, 37):
        pieces.append(values[start : start + 37])
    edges = np.linspace(0, 10_000, 30).astype(int)

    np.testing.assert_array_equal(whole.extremes(edges), pieces.extremes(edges))


def test_truncated_values_leave_no_trace():
    """A resume voids what came after; its peaks must go from all blocks."""
    pyramid = Pyramid()
    pyramid.append(np.concatenate([np.full(5000, 0.1), np.full(5000, 7.0)]).astype("f4"))
    pyramid.truncate(5001)
    pyramid.append(np.full(3000, 0.2, "f4"))

    assert pytest.approx(float(np.nanmax(pyramid.extremes(np.linspace(5001, 8001, 101).astype(int))[1]))) == 0.2
    assert np.nanmax(pyramid.extremes(np.array([0, 8001]))[1]) == 7.0
    pyramid.truncate(5000)
    assert pytest.approx(float(np.nanmax(pyramid.extremes(np.array([0, 5000]))[1]))) == 0.1


def test_infinite_and_missing_values_do_not_break_the_range():
    """A damaged metrics.bin may hold anything."""
    pyramid = Pyramid()
    pyramid.append(np.array([0.1, np.inf, np.nan, -np.inf, 0.3], "f4"))

    lows, highs = pyramid.extremes(np.array([0, 5]))

    assert (pytest.approx(0.1), pytest.approx(0.3)) == (lows[0], highs[0])


def test_smoothing_is_the_recurrence():
    """y = decay * y + (1 - decay) * x, across the borders of the chunks it is computed in."""
    values = np.random.default_rng(1).random(2000)
    expected, average = [], 0.4
    for value in values:
        average = 0.98 * average + 0.02 * value
        expected.append(average)

    np.testing.assert_allclose(smooth(values, 0.98, 0.4), expected, rtol=1e-9)


def test_smoothing_begins_as_a_plain_mean():
    """The first value must not weigh on the first fifty."""
    series = Series("loss", 0.98)
    series.append(np.arange(1, 11), np.array([10.0, *[1.0] * 9]))

    assert pytest.approx((10 + 9) / 10) == series.smoothed.column.values[-1]


def test_smoothing_in_pieces_equals_smoothing_at_once():
    """What is added later changes nothing before it."""
    values = np.random.default_rng(2).random(3000)
    whole, pieces = Series("a", 0.9), Series("b", 0.9)
    whole.append(np.arange(3000), values)
    for start in range(0, 3000, 7):
        pieces.append(np.arange(start, min(start + 7, 3000)), values[start : start + 7])
        assert len(pieces) == len(pieces.smoothed)

    np.testing.assert_allclose(pieces.smoothed.column.values, whole.smoothed.column.values, rtol=1e-4)


def test_missing_values_keep_the_average_as_it_was():
    """One NaN must not make all that follows NaN."""
    assert not np.isnan(smooth(np.array([1.0, np.nan, 1.0]), 0.9, 1.0)).any()


def test_value_nearest_to_a_step_is_found():
    """The cursor may stand between two steps or beyond the ends."""
    series = Series("loss", 0.5)
    series.append(np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0]))

    assert [series.at(step)[0] for step in (-5, 14, 16, 1e9)] == [10, 10, 20, 30]
    assert Series("empty").at(3) is None
