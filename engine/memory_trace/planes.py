"""Reduces traces to a few planes: what is held at a moment is linear in a handful of products of the batch's sizes.

bytes = c0 + c1 B + c2 B p + c3 B t (+ c4 B p^2 + c5 B p t where attention keeps its scores), with B images,
p latent positions over those of 512 x 512 and t tokens over 77; all moments of a step lie on planes of this kind, and
only those that are the largest of their pass somewhere are kept.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.memory.allocation import MIB, slack
from engine.memory.planes import features
from engine.memory_trace.ledger import Ledger
from engine.memory_trace.step import Case, Point

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two batches, two areas and two lengths tell the coefficients apart. B = 1 is left out: there fewer reshapes copy.
LINEAR = (
    Point(batch=2, height=64, width=64),
    Point(batch=3, height=64, width=64),
    Point(batch=2, height=128, width=128),
    Point(batch=2, height=64, width=64, tokens=231),
)
SQUARE = (*LINEAR, Point(batch=2, height=96, width=96), Point(batch=2, height=128, width=128, tokens=231))
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_AREAS = (0.25, 0.5625, 1.0, 1.5625, 2.25, 4.0, 6.25)
_SLACK_POINTS = (0, 2)
# Bytes an optimizer may need for each weight while it updates: decides which completed gradient is the costliest.
_FACTORS = (2, 4, 8, 12, 16, 24)


def fit_planes(trace: Callable[[Point], Ledger], case: Case) -> dict[str, Any]:
    """Return the planes of both passes and of completed gradients, coefficients in MiB by kind of memory.

    Raises:
        ValueError: The operations differ between the points, so that moments can't be matched.
    """
    points = LINEAR if case.attention == "fused" else SQUARE
    ledgers = [trace(point) for point in points]
    moments = [ledger.moments for ledger in ledgers]
    if len({len(found) for found in moments}) != 1:
        raise ValueError(f"{case.name}: {[len(found) for found in moments]} operations at {len(points)} points")
    size = len(points)
    matrix = np.array([features(point.batch, point.area, point.tokens / 77, case.attention) for point in points])
    held = np.array([[moment.held for moment in found] for found in moments], float)  # Points, moments, kinds.
    coefficients = np.linalg.solve(matrix, held.reshape(size, -1)).reshape(held.shape).transpose(1, 2, 0) / MIB
    is_backward = np.array([moment.is_backward for moment in moments[0]])
    finished = np.array([moment.finished for moment in moments[0]])
    grid = np.array([features(batch, area, 1, case.attention) for batch in _BATCHES for area in _AREAS])
    totals = coefficients.sum(axis=1) @ grid.T
    without_gradients = coefficients[:, :3].sum(axis=1) @ grid.T
    forward = _largest(totals, ~is_backward)
    backward = _largest(totals, is_backward) | _largest(without_gradients, is_backward)
    completed: set[int] = set()
    for factor in _FACTORS:
        completed |= _largest(without_gradients + (finished * factor / MIB)[:, None], finished > 0)
    return {
        "forward": _rows(coefficients, forward),
        "backward": _rows(coefficients, backward),
        "completed": [
            {"elements": int(finished[index]), "held": _rounded(coefficients[index, :3])} for index in sorted(completed)
        ],
        "slack": round(
            sum(slack(ledgers[index].order, ledgers[index].num_weights, ledgers[index].end) for index in _SLACK_POINTS)
            / len(_SLACK_POINTS),
            4,
        ),
    }


def _largest(totals: "NDArray[np.float64]", among: "NDArray[np.bool_]") -> set[int]:
    """Return the moments that are the largest somewhere on the grid."""
    numbers = np.flatnonzero(among)
    return {int(numbers[index]) for index in totals[numbers].argmax(axis=0)}


def _rows(coefficients: "NDArray[np.float64]", numbers: set[int]) -> list[list[list[float]]]:
    return [_rounded(coefficients[number]) for number in sorted(numbers)]


def _rounded(rows: Sequence[Sequence[float]] | Any) -> list[list[float]]:  # noqa: ANN401 - an array
    return [[round(float(value), 3) + 0.0 for value in row] for row in rows]
