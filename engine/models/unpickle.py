"""A reader for the data in a pickle that runs none of its code. Torch-free.

A pickle is a program. This interprets the opcodes that build plain data, by hand, and turns every class or function
that the program names into an inert record: nothing is imported, called or constructed. Names that no honest
checkpoint holds are refused rather than made inert, so that a hostile file is recognised for what it is.
"""

import math
import pickletools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

MAX_PICKLE_BYTES = 16_000_000
_MAX_OPCODES = 4_000_000
_INT_LIMIT = 2**128  # Torch's own magic number has 77 bits.
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_REBUILDS = {"_rebuild_tensor", "_rebuild_tensor_v2"}
_PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_INERT = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.nn.modules.container", "ParameterDict"),
    ("torch.nn.parameter", "Parameter"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("_codecs", "encode"),
    ("__builtin__", "set"), ("__builtin__", "bytearray"), ("__builtin__", "slice"), ("__builtin__", "complex"),
    ("__builtin__", "dict"), ("__builtin__", "list"), ("__builtin__", "tuple"), ("__builtin__", "int"),
    ("__builtin__", "float"), ("__builtin__", "str"), ("__builtin__", "bool"), ("__builtin__", "unicode"),
}  # fmt: skip
# numpy moved these from numpy.core to numpy._core in 2.0.
_NUMPY = {"scalar", "_reconstruct", "dtype", "ndarray", "bool_", "float32", "float64", "int64", "int32"}
_MAPPINGS = {("collections", "OrderedDict"), ("collections", "defaultdict")}


class RefusedPickleError(Exception):
    """The pickle names code, or is no sound data; the message says which."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle refers to, by name only."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the dotted name."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Inert:
    """What an allowed class or function would have made."""

    name: Name


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A block of values kept elsewhere in the file: `numel` of a type code, under a key."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A strided view of a storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(file: IO[bytes]) -> Any:  # noqa: ANN401  # pickled data has any shape
    """Return the data of the pickle that starts at the file's position, leaving the position behind it.

    Raises:
        RefusedPickleError: It refers to code or isn't sound.
    """
    machine = _Machine()
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if count > _MAX_OPCODES:
                raise RefusedPickleError("it has more instructions than any checkpoint needs")
            machine.run(opcode.name, arg)
        return machine.pop()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RefusedPickleError(f"it is damaged ({type(error).__name__})") from error


class _Mark:
    pass


_MARK = _Mark()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The pickle's stack and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, arg: Any) -> None:  # noqa: ANN401
        """Carry out one opcode."""
        if opcode in _LITERALS:
            if isinstance(arg, int) and abs(arg) >= _INT_LIMIT:
                raise RefusedPickleError("it holds a number that no checkpoint needs")
            self.stack.append(arg)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            self.stack.append(tuple(self.pop_many(_TUPLES[opcode])))
        else:
            action = _ACTIONS.get(opcode)
            if action is None:
                raise RefusedPickleError(f"it uses the instruction {opcode}, which no checkpoint needs")
            action(self, arg)

    def pop(self) -> Any:  # noqa: ANN401
        """Take the top value."""
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def pop_many(self, count: int) -> list[Any]:
        """Take the top values, bottom first."""
        values = [self.pop() for _ in range(count)]
        return values[::-1]

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]


def _append(machine: _Machine, values: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise TypeError


def _set_items(machine: _Machine, flat: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, dict):
        target.update(_pairs(flat))
    elif not isinstance(target, Inert):
        raise TypeError


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Hashable, Any]]:
    # Nested tuples as keys could be built to take for ever to hash.
    if not all(isinstance(key, str | int | float | bytes | Name | None) for key in flat[::2]):
        raise TypeError
    return zip(flat[::2], flat[1::2], strict=True)


def _push_name(machine: _Machine, module: object, name: object) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    machine.stack.append(_allowed(Name(module, name)))


def _allowed(name: Name) -> Name:
    module, short = name.module, name.name
    module = {"builtins": "__builtin__"}.get(module, module)
    known = (
        (module, short) in _INERT
        or (module, short) in _MAPPINGS
        or (module == "torch._utils" and short in _REBUILDS | _PARAMETERS)
        or (module in {"torch", "torch.storage"} and short in _STORAGES)
        or (module == "torch" and short in {"float32", "float16", "bfloat16", "float64", "int64", "int32"})
        or (module.split(".")[0] == "numpy" and short in _NUMPY)
        or module.split(".")[0] in {"pytorch_lightning", "lightning"}
    )
    if not known:
        _refuse_name(name)
    return name


def _refuse_name(name: Name) -> NoReturn:
    raise RefusedPickleError(f"it asks for the code {name}, which no checkpoint needs")


def _reduce(machine: _Machine, _: object) -> None:
    function, args = machine.pop_many(2)
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise TypeError
    machine.stack.append(_result(function, args))


def _result(function: Name, args: tuple[Any, ...]) -> object:
    if function.module == "torch._utils" and function.name in _REBUILDS:
        return _tensor(*args[:4])
    if function.module == "torch._utils" and function.name in _PARAMETERS:
        return args[0]
    if (function.module, function.name) in _MAPPINGS:
        pairs = args[0] if args and isinstance(args[0], list) else []
        return dict(_pairs([value for pair in pairs for value in pair]))
    return Inert(function)


def _new_object(machine: _Machine, _: object) -> None:
    kind, _args = machine.pop_many(2)
    if not isinstance(kind, Name):
        raise TypeError
    machine.stack.append({} if (kind.module, kind.name) in _MAPPINGS else Inert(kind))


def _stack_name(machine: _Machine, _: object) -> None:
    module, name = machine.pop_many(2)
    _push_name(machine, module, name)


def _global_name(machine: _Machine, arg: str) -> None:
    module, _, name = arg.partition(" ")
    _push_name(machine, module, name)


def _tensor(storage: object, offset: object, shape: object, stride: object) -> TensorRef:
    """Check a view against its storage: one that reaches outside, or repeats values to look huge, is an attack."""
    if not isinstance(storage, StorageRef) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise TypeError
    numbers = [offset, *shape, *stride]
    if len(shape) != len(stride) or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError
    assert isinstance(offset, int)
    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    if math.prod(shape) and (math.prod(shape) > storage.numel or reach > storage.numel):
        raise RefusedPickleError(f"a tensor of shape {list(shape)} claims more values than its {storage.numel} stored")
    return TensorRef(storage, offset, shape, stride)


def _storage(machine: _Machine, _: object) -> None:
    """Resolve ("storage", type, key, device, numel), with a sixth entry in files of before 2020."""
    fields = machine.pop()
    if not isinstance(fields, tuple) or len(fields) not in {5, 6} or fields[0] != "storage":
        raise TypeError
    _, kind, key, _device, numel, *view = fields
    if not isinstance(kind, Name) or kind.name not in _STORAGES or view not in ([], [None]):
        raise RefusedPickleError("it stores its tensors in a form that is no longer in use")
    if not isinstance(key, str | int) or type(numel) is not int or not 0 <= numel < 2**48:
        raise ValueError
    machine.stack.append(StorageRef(str(key), _STORAGES[kind.name], numel))


def _mark(machine: _Machine, _: object) -> None:
    machine.stack.append(_MARK)


def _drop(machine: _Machine, _: object) -> None:
    machine.pop()


def _collect(kind: Callable[[list[Any]], object]) -> Callable[[_Machine, object], None]:
    def action(machine: _Machine, _: object) -> None:
        machine.stack.append(kind(machine.pop_to_mark()))

    return action


def _get(machine: _Machine, arg: object) -> None:
    assert isinstance(arg, int | str)
    machine.stack.append(machine.memo[int(arg)])


def _put(machine: _Machine, arg: object) -> None:
    assert isinstance(arg, int | str)
    machine.memo[int(arg)] = machine.stack[-1]


def _memoize(machine: _Machine, _: object) -> None:
    _put(machine, len(machine.memo))


def _ignore(_machine: _Machine, _: object) -> None:
    return


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _ignore,
    "FRAME": _ignore,
    "STOP": _ignore,
    "MARK": _mark,
    "POP": _drop,
    "BUILD": _drop,  # The state of an object: a dict's attributes, or an inert record's, which nothing here reads.
    "LIST": _collect(list),
    "TUPLE": _collect(tuple),
    "FROZENSET": _collect(list),
    "DICT": _collect(lambda flat: dict(_pairs(flat))),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: _append(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.pop_many(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GLOBAL": _global_name,
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "BINPERSID": _storage,
}
