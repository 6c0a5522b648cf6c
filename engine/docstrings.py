"""Descriptions of settings from the docstrings under them, read from a module's source once. Torch-free.

Pydantic can do this itself, but parses the whole module anew for each class: 30 ms before the first screen.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel


def describe_fields(models: Iterable[type[BaseModel]], source: Path) -> None:
    """Give the fields of the models the docstrings that stand under them in the file `source`."""
    wanted = {model.__name__: model for model in models}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in wanted:
            for name, text in _attribute_docstrings(node):
                wanted[node.name].model_fields[name].description = text


def _attribute_docstrings(node: ast.ClassDef) -> Iterable[tuple[str, str]]:
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield statement.target.id, text.value
