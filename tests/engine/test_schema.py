"""The generated documents: complete, true to the models, and up to date in docs/."""

import json
from pathlib import Path

import pytest

from engine.cli import main
from engine.schema import dataset_json_schema, documents, read_proofs, run_json_schema, settings_markdown
from engine.settings import SECTION_OF, SECTIONS
from engine.settings_io import REFUSED, SHORTHANDS, WITHOUT_EFFECT

DOCS = Path(__file__).parents[2] / "docs"


PROOFS = read_proofs(DOCS.parent / "tests" / "proofs.toml")


@pytest.mark.parametrize("name", documents())
def test_the_documents_in_the_repository_are_up_to_date(name):
    """`python -m engine schema` writes them."""
    assert (DOCS / name).read_text(encoding="utf-8") == documents(PROOFS)[name]


def test_the_page_names_every_setting_and_flag():
    """With its effect; what is accepted without effect and what is refused is said."""
    page = settings_markdown()

    for name in (*SECTION_OF, *SHORTHANDS, *WITHOUT_EFFECT, *REFUSED):
        assert f"| `{name}` |" in page, name
    assert "| `learning_rate` | float (> 0, <= 10) | `2e-06` |" in page
    assert "| `mixed_precision` | no, fp16, bf16 | `no` |" in page
    assert page.isascii()


def test_the_run_schema_completes_every_section_and_key():
    """An editor offers exactly what the reader accepts."""
    schema = run_json_schema()
    for section, cls in SECTIONS.items():
        name = schema["properties"][section]["$ref"].rpartition("/")[2]
        part = schema["$defs"][name]
        assert part["properties"].keys() == cls.model_fields.keys()
        assert part["additionalProperties"] is False
        assert all(value["description"] for value in part["properties"].values())


def test_the_data_set_schema_knows_all_levels():
    """`[general]`, `[[datasets]]` and `[[datasets.subsets]]`."""
    text = json.dumps(dataset_json_schema())

    assert {"general", "datasets"} <= dataset_json_schema()["properties"].keys()
    for key in ("subsets", "image_dir", "metadata_file", "num_repeats", "batch_size", "resolution", "shuffle_caption"):
        assert f'"{key}"' in text


def test_the_command_writes_them(tmp_path, capsys):
    """All of them, into any folder."""
    assert main(["schema", "--folder", str(tmp_path / "docs")]) == 0

    assert {path.name for path in (tmp_path / "docs").iterdir()} == documents().keys()
    capsys.readouterr()
