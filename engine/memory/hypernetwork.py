"""What a hypernetwork takes beside its UNet, measured by the usual one, which is in the table. Torch-free."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from engine.memory.allocation import MIB
from engine.memory.request import Request
from engine.memory.table import Held, Shapes, UnetTable
from engine.models.hypernetwork_file import Structure

USUAL = Structure()
# Their pass back needs what came out; that of the others needs what went in.
_KEEP_RESULT = {"relu", "sigmoid", "tanh"}


@lru_cache(maxsize=64)
def shapes_of(structure: Structure, widths: tuple[int, ...]) -> Shapes:
    """Return the parameters of a hypernetwork: for each width one network on keys and one on values."""
    counts = Counter(shape for width in widths for shape in structure.shapes(width).values())
    return Shapes(counts=tuple((2 * count, shape) for shape, count in sorted(counts.items())))


def widths_of(request: Request, unet: UnetTable) -> tuple[int, ...]:
    """Return the widths that a request's hypernetwork has networks for."""
    return tuple(width for width in unet.widths if width in request.hypernetwork_widths) or unet.widths


def adapted(held: Held, request: Request, unet: UnetTable) -> Held:
    """Return what a pass holds, the table's figures being those of the usual structure for all widths."""
    structure, widths = request.hypernetwork, widths_of(request, unet)
    if structure is None or (replace(structure, activate_output=False) == USUAL and widths == unet.widths):
        return held
    share = shapes_of(structure, widths).elements / shapes_of(USUAL, unet.widths).elements
    activations, autocast, temporary, gradients = held
    more = _kept(structure, widths, request, unet) - _kept(USUAL, unet.widths, request, unet)
    return (max(0.0, activations + more / MIB), autocast * share, temporary, gradients * share)


def _kept(structure: Structure, widths: tuple[int, ...], request: Request, unet: UnetTable) -> float:
    """Return the bytes that the networks keep for their pass back; with checkpointing those of the costliest layer."""
    each = [
        count * positions * 2 * _per_position(structure, width, 4 if request.precision == "single" else 2)
        for count, width, picture, text in unet.attention
        if width in widths
        for positions in (request.batch * (picture * request.area + text * request.chunks),)
    ]
    counts = [count for count, width, _, _ in unet.attention if width in widths]
    if request.is_checkpointed:  # One layer's are computed anew at a time.
        return max((kept / count for kept, count in zip(each, counts, strict=True)), default=0.0)
    return sum(each)


def _per_position(structure: Structure, width: int, item: int) -> float:
    """Return the bytes that one network keeps for one position, without the first input, which attention keeps too."""
    kept = 0
    is_kept = True  # What the next module is given.
    for kind, layer in structure.modules():
        size = structure.size(width, layer)
        if kind == "linear":
            kept += 0 if is_kept else item * structure.size(width, layer - 1)
        elif kind == "activation" and structure.activation in _KEEP_RESULT:
            kept += item * size
        elif kind == "activation":
            kept += 0 if is_kept else item * size
        elif kind == "norm":  # Under autocast it makes a float32 copy of its input.
            kept += 0 if is_kept and item == 4 else 4 * size
        else:  # Of dropout the mask.
            kept += size
        is_kept = kind == "activation" and structure.activation in _KEEP_RESULT
    return kept
