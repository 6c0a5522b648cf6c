"""The rules of the house that a machine can check: sizes, help and readers of settings, names, torch-free fronts."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest

from engine import setting_types as model
from engine.settings import SECTION_OF, SECTIONS

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "sdtui").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES = {"engine/settings.py": 450, "engine/train.py": 150}
DECLARING = {
    "settings.py", "settings_output.py", "setting_types.py", "settings_io.py", "schema.py", "flags.py",
}  # fmt: skip


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def length(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_a_reader_holds():
    """400 lines, the settings 450, the recipe 150; tests, which are read one by one, 600."""
    lengths = {name_of(path): length(path) for path in SOURCES}

    assert {name: lines for name, lines in lengths.items() if lines > LINES.get(name, 400)} == {}
    assert {name_of(path): length(path) for path in TESTS if length(path) > 600} == {}


def test_no_function_is_longer_than_a_page():
    """60 lines, the docstring included."""
    functions = [
        (f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [(name, lines) for name, lines in functions if lines > 60] == []


def test_sources_are_ascii_and_every_module_says_what_it_is_for():
    """Fonts and terminals differ; escapes do not."""
    assert [name_of(path) for path in SOURCES if not path.read_text(encoding="utf-8").isascii()] == []
    assert [name_of(path) for path in SOURCES if not ast.get_docstring(parsed(path))] == []


def test_nothing_is_left_undone():
    """Neither marks of unfinished work nor tests that are switched off."""
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X:", "NotImplemented" + "Error(", "mark." + "skip", "x" + "fail"]
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in [*SOURCES, *TESTS]}

    assert {(name, word) for name, text in texts.items() for word in words if word in text} == set()


def read_names(paths):
    """Return every attribute that is read, and every string in a lookup: getattr, subscript, .get()."""
    names = set()
    for node in chain.from_iterable(ast.walk(parsed(path)) for path in paths):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def test_every_setting_has_a_reader():
    """A setting that nothing reads is refused by name (NOT_YET) rather than accepted."""
    engine = [path for path in SOURCES if path.is_relative_to(ROOT / "engine") and path.name not in DECLARING]
    engine = [path for path in engine if not path.is_relative_to(ROOT / "engine" / "rules")]  # They only judge.
    read = read_names(engine)
    by_prefix = {name for name in SECTION_OF if name.startswith("metadata_")}
    assert 'startswith("metadata_")' in (ROOT / "engine" / "parts.py").read_text()
    # Said to give what is done anyway.
    idle = {"sdpa"}

    assert {name for name in SECTION_OF if name not in read} - by_prefix - idle == set()


def test_every_setting_has_a_test_that_shows_what_it_does():
    """tests/proofs.toml names it: add a new setting to the test that shows its effect."""
    table = tomllib.loads((ROOT / "tests" / "proofs.toml").read_text())
    proven = [name for names in table.values() for name in names]

    assert set(SECTION_OF) - set(proven) == set(), "settings without a test in tests/proofs.toml"
    assert set(proven) - set(SECTION_OF) == set(), "no settings"
    assert len(proven) == len(set(proven))
    for test in table:
        path, _, name = test.partition("::")
        assert any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
            for node in parsed(ROOT / "tests" / path).body
        ), test


def test_every_setting_has_help_that_is_a_sentence():
    """Forms, flags and docs show it."""
    for section in SECTIONS.values():
        assert (section.__doc__ or "").endswith(".")
        for name, field in section.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name
            assert len(field.description) <= 120, name


@pytest.mark.parametrize(
    ("literal", "module", "table"),
    [
        ("OptimizerName", "engine.optim", "OPTIMIZERS"),
        ("CurveName", "engine.curves", "CURVES"),
        ("LossName", "engine.losses", "DISTANCES"),
        ("HuberSchedule", "engine.losses", "HUBER_SCHEDULES"),
        ("SamplerName", "engine.samplers", "SAMPLERS"),
        ("MixedPrecision", "engine.parts", "PRECISIONS"),
        ("CaptionerName", "engine.captioning.captioners", "CAPTIONERS"),
    ],
)
def test_every_choice_has_its_function(literal, module, table):
    """A Literal in the settings and the dict of functions name the same."""
    assert set(get_args(getattr(model, literal))) == set(getattr(importlib.import_module(module), table))


def torch_free_modules():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"] == "The front half is free of torch"]
    return contract["source_modules"]


def test_the_front_half_loads_no_torch():
    """In a process of its own, since a static graph can't see what is imported late."""
    names = [*torch_free_modules(), "engine.headless", "engine.background", "engine.preflight", "engine.librarylog"]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'bitsandbytes', 'xformers', 'textual'}\n"
        "print(*sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_our_processes_run_no_module_of_the_current_folder():
    """-m and -c put it first on the path; a folder that somebody else filled may hold a torch.py."""
    started = {name_of(path): re.findall(r"sys\.executable, ([^,]+)", path.read_text("utf-8")) for path in SOURCES}

    assert {flag for flags in started.values() for flag in flags} == {'"-P"'}
    assert len([name for name, flags in started.items() if flags]) >= 6


def test_the_engine_never_imports_the_screens():
    """One direction."""
    engine = [path for path in SOURCES if path.is_relative_to(ROOT / "engine")]
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for path in engine
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }

    assert not {name for name in imported if name and name.split(".")[0] in {"textual", "sdtui"}}


def repository_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    binary = {".png", ".jpg", ".webp", ".safetensors", ".ckpt", ".bin", ".svg", ".gz"}
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.suffix not in binary and path.exists()]


def test_no_file_names_a_place_on_somebodys_machine():
    """Neither home folders nor the workshop the project was made in."""
    pattern = re.compile("/ho" + r"me/(?!me\b|you\b|user\b|USER\b|ann?\b)\w+|/Us" + r"ers/\w+|/wo" + "rk/|/ro" + "ot/")
    found = {
        f"{name_of(path)}: {match[0]}"
        for path in repository_files()
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="replace"))
    }

    assert found == set()
