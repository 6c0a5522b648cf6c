"""Demand 10 of docs/reliability.md, headless: hostile text in names, captions, tags, TOML and models is shown escaped.

Every command prints lines without a control, bidi or invisible character, no traceback, and runs nothing of it;
tests/sdtui/test_hostile.py does the same on every screen.
"""

import os
import unicodedata

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engine.cli import main
from tests.engine.run_support import new_folder, tiny_model, write_run

CORPUS = [
    # Sequences that a terminal obeys: clipboard, clearing, colours, title, device strings, in 7 and in 8 bits.
    "\x1b]52;c;ZXZpbA==\x07", "\x1b]52;c;ZXZpbA==\x1b\\", "\x1b[2J\x1b[H", "\x1b[31mred", "\x1b]0;title\x07",
    "\x1bPq#0\x1b\\",
    "\x1b_Gi=1;AAAA\x1b\\", "\x1b^pm\x1b\\", "\x1bXsos\x1b\\", "\x1bc", "\x1b(0", "\x1b[6n", "\x1b[?1049h",
    "\x1b]8;;http://x\x07y",
    "\x9b2J", "\x9d52;c;AA\x9c", "\x90q\x9c", "\x84\x85\x8d", "\x05\x07\x08\x0b\x0c\x0e\x0f\x7f", "a\rb",
    "a\nb", "a\tb",
    # Characters that hide or turn text.
    "\u202egnp.exe", "\u202a\u202b\u202c\u202d", "\u2066a\u2067b\u2068c\u2069", "\u200e\u200f\u061c",
    "a\u200bb\u200cc\u2060d",
    "\ufeffbom", "soft\u00adhyphen", "\u3164\u115f", "\u2028line\u2029paragraph", "\U000e0041\U000e0042tags",
    "\ufff9a\ufffab\ufffb",
    "\u180e", "\U000f0000private",
    # Markup, formats, shells, paths, options.
    "[/]", "[/red]", "[red", "[@click=app.quit]x[/]", "[link=http://x]y[/link]", "[[[[", "\\[b]",
    "{0.__class__}", "%s%n%x",
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "'; DROP TABLE", "${HOME}", "<script>", "-rf",
    "--help", "~root",
    # Long, wide and piled up.
    "a" + "\u0301" * 100, "\u732b" * 60, "\U0001f469\u200d\U0001f469\u200d\U0001f467", "x" * 200, "\ufffe",
    "null", "NaN",
]  # fmt: skip

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_the_corpus_is_large_enough():
    """Forty and more, all of them different."""
    assert len(set(CORPUS)) == len(CORPUS) >= 40


@pytest.fixture(scope="module")
def run_toml():
    """A run whose pictures bear the corpus as names (what a file system takes of it) and as captions."""
    folder = new_folder()
    (folder / "pictures").mkdir()
    for number, text in enumerate(CORPUS):
        name = os.fsencode(f"{number}{text}".replace("/", "_"))[:240]
        stem = folder / "pictures" / os.fsdecode(name)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(stem.with_name(f"{stem.name}.png"))
        stem.with_name(f"{stem.name}.caption").write_text(f"{text}, cat, {text}", encoding="utf-8", newline="")
    return write_run(folder, pictures=folder / "pictures", model=tiny_model())


@pytest.fixture
def shown(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; it prints visible lines only, and nothing of the corpus was obeyed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, codes=(0, 2)):
        assert main([str(argument) for argument in arguments]) in codes
        text = "".join(capsys.readouterr())
        assert "Traceback" not in text
        assert not hidden_in(text)
        assert not (tmp_path / "CANARY").exists()
        return text

    return run


def hidden_in(text):
    return sorted({ascii(char) for char in text if char != "\n" and unicodedata.category(char) in HIDDEN})


@pytest.mark.parametrize("arguments", [("check",), ("plan",), ("plan", "--json")])
def test_row_40_43_names_and_captions_are_shown_escaped_by_check_and_plan(run_toml, shown, arguments):
    """As lines and as JSON; all pictures are used."""
    text = shown(arguments[0], run_toml, *arguments[1:])

    assert arguments != ("plan",) or text.startswith(f"{len(CORPUS)} pictures")


def test_row_40_43_names_and_tags_are_shown_escaped_by_the_data_commands(run_toml, shown):
    """Merged, counted, cleaned, changed and taken back, each with its diff."""
    pictures = run_toml.parent / "pictures"
    before = {path: path.read_bytes() for path in pictures.iterdir()}

    for path in (pictures, "meta.json"):
        shown("data", "merge", pictures, "meta.json", "--debug", codes=(0,))
        shown("data", "stats", path, "--top", 500, "--caption_extension", ".caption", codes=(0,))
        shown("data", "stats", path, "--top", 500, "--caption_extension", ".caption", "--json", codes=(0,))
        shown("data", "tags", path, "--field", "caption", "--caption_extension", ".caption", "--rename", "cat=dog",
              "--dry_run", codes=(0,))  # fmt: skip
        for rules in ("classic", "default"):
            shown("data", "clean", "meta.json", "clean.json", "--rules", rules, "--debug", codes=(0,))
    shown("data", "undo", "clean.json")

    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_row_47_hostile_keys_and_values_of_toml_are_named_escaped(tmp_path, shown):
    """Each of the corpus as key, choice, path, item, name and section: exit 2, and the line where it is wrong."""
    for number, text in enumerate(CORPUS):
        letters = "".join(f"\\U{ord(char):08x}" for char in text)
        quoted = f'"{letters}"'
        path = tmp_path / f"{number}.toml"
        lines = (
            f"{quoted} = 1", f"optimizer_type = {quoted}", f"pretrained_model_name_or_path = {quoted}",
            f"optimizer_args = [{quoted}]", f"output_name = {quoted}", f'["s{letters}"]', f"sample_prompts = {quoted}",
        )  # fmt: skip
        path.write_text("\n".join(lines))

        printed = shown("check", path, codes=(2,))

        assert "is not a setting" in printed
        assert f"{number}.toml:2:" in printed


def test_row_47_hostile_bytes_as_toml_end_in_a_sentence(tmp_path, shown):
    """The corpus as it is, which is no TOML."""
    for number, text in enumerate(CORPUS):
        path = tmp_path / f"{number}.toml"
        path.write_bytes(os.fsencode(text))

        assert f"{number}.toml" in shown("check", path, codes=(2,))


def test_row_43_names_in_models_are_shown_escaped(tmp_path, shown):
    """Names of tensors and metadata of a safetensors file."""
    for number, text in enumerate(CORPUS):
        path = tmp_path / f"{number}.safetensors"
        save_file({text: torch.zeros(2), "a": torch.zeros(1)}, path, metadata={text: text, "modelspec.title": text})

        assert f"{number}.safetensors" in shown("verify", path, codes=(1, 2))
