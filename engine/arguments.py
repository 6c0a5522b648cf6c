"""Arguments written as name=value, and classes written as module.Class, for optimizers and schedules. Torch-free."""

import ast
import importlib
from collections.abc import Iterable
from typing import Any

from engine.errors import EngineError, safe_text
from engine.toml import nearest


def parse_arguments(pairs: Iterable[str], *, setting: str = "optimizer_args") -> dict[str, Any]:
    """Return arguments from texts such as "weight_decay=0.01"; values are Python literals.

    Raises:
        EngineError: A text is no pair, its value no literal, or a name is given twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            raise EngineError(f"{setting}: {safe_text(pair)!r} is not of the form name=value")
        if name in arguments:
            raise EngineError(f"{setting}: {name} is given twice; keep one")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise EngineError(
                f"{setting}: the value of {safe_text(pair)!r} can't be read; "
                'write a number, True, False, None, "text" or (0.9, 0.99)'
            ) from error
    return arguments


def load_class(name: str, default_module: str, setting: str) -> type[Any]:
    """Return a class by its dotted name, or by its bare name from the default module.

    Importing a module runs its code, as it does for any package that is used.

    Raises:
        EngineError: The module or the class is not there.
    """
    module_name, _, class_name = name.rpartition(".")
    module_name = module_name or default_module
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"{setting} = {safe_text(name)}: the module {safe_text(module_name)} can't be imported "
            f"({safe_text(str(error))}); install its package, or correct the name"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        hint = nearest(class_name, dir(module))
        raise EngineError(f"{setting} = {safe_text(name)}: {safe_text(module_name)} has no such class{hint}")
    return found
