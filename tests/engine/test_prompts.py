"""Sample prompts in sd-scripts' formats, and what is said of wrong ones."""

import json
import subprocess
import sys

import pytest

from engine.errors import EngineError, ProblemsError
from engine.prompts import SamplePrompt, prompt_line, read_prompt, read_prompts


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


FULL = SamplePrompt(
    prompt="a cat, 1girl",
    negative_prompt="blurry, low-res",
    width=768,
    height=512,
    seed=7,
    sample_steps=20,
    scale=5.5,
    sample_sampler="euler_a",
)


def test_lines_of_text_with_every_option(write):
    path = write(
        "prompts.txt",
        "# a comment\n\na cat, 1girl --w 770 --h 512 --d 7 --s 20 --l 5.5 --n blurry, low-res --ss euler_a\r\na dog\n",
    )

    assert (FULL, SamplePrompt(prompt="a dog")) == read_prompts(path)


def test_defaults_are_sd_scripts(write):
    (prompt,) = read_prompts(write("prompts.txt", "a dog"))

    expected = ("a dog", "", 512, 512, None, 30, 7.5, None)
    actual = (
        prompt.prompt,
        prompt.negative_prompt,
        prompt.width,
        prompt.height,
        prompt.seed,
        prompt.sample_steps,
        prompt.scale,
        prompt.sample_sampler,
    )
    assert expected == actual


def test_options_may_be_written_in_capitals_and_stand_alone(write):
    (prompt,) = read_prompts(write("prompts.txt", "--W 128 --SS DDIM"))

    assert SamplePrompt(prompt="", width=128, sample_sampler="ddim") == prompt


def test_hyphens_inside_words_belong_to_the_prompt(write):
    (prompt,) = read_prompts(write("prompts.txt", "a well--known x-ray - of a cat"))

    assert prompt.prompt == "a well--known x-ray - of a cat"


def test_sides_are_floored_to_eights_from_64(write):
    (prompt,) = read_prompts(write("prompts.txt", "a dog --w 519 --h 20"))

    assert (prompt.width, prompt.height) == (512, 64)


TOML = """\
[prompt]
width = 768
negative_prompt = "blurry, low-res"

[[prompt.subset]]
prompt = "a cat, 1girl"
seed = 7
sample_steps = 20
scale = 5.5
sample_sampler = "euler_a"

[[prompt.subset]]
prompt = "a dog"
width = 512
negative_prompt = ""
"""


def test_toml_subsets_complete_the_prompt_table(write):
    assert (FULL, SamplePrompt(prompt="a dog")) == read_prompts(write("prompts.toml", TOML))


def test_json_lists_hold_objects_or_lines(write):
    items = [
        {
            "prompt": "a cat, 1girl",
            "negative_prompt": "blurry, low-res",
            "width": 768,
            "height": 512,
            "seed": 7,
            "sample_steps": 20,
            "scale": 5.5,
            "sample_sampler": "euler_a",
        },
        "a dog --w 512",
        {"prompt": "a fox", "seed": None},
    ]

    expected = (FULL, SamplePrompt(prompt="a dog"), SamplePrompt(prompt="a fox"))
    assert expected == read_prompts(write("prompts.json", json.dumps(items)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "a\nb --w abc", r"p.txt:2: width = 'abc': should be a whole number from 1 to 8192"),
        ("p.txt", "b --w 51.5", r"p.txt:1: width = 51.5"),
        ("p.txt", "b --w", r"p.txt:1: width = ''"),
        ("p.txt", "b --s 0", r"p.txt:1: sample_steps = 0: should be a whole number from 1 to 1000"),
        ("p.txt", "b --l -1", r"p.txt:1: scale = -1.* from 0 to 100"),
        ("p.txt", "b --l nan", r"p.txt:1: scale = nan"),
        ("p.txt", "b --d -3", r"p.txt:1: seed = -3"),
        ("p.txt", "b --ss eulr_a", r"p.txt:1: sample_sampler = 'eulr_a'.*did you mean 'euler_a'"),
        ("p.txt", "b --ar 16:9", r"p.txt:1: --ar is not an option .*known are --w --h"),
        ("p.txt", "b --cn edges.png", r"p.txt:1: --cn: ControlNet pictures are not supported"),
        (
            "p.toml",
            "[prompt]\n[[prompt.subset]]\nprompt = 'a'\nwith = 3",
            r"p.toml:4: with is not .*did you mean 'width'",
        ),
        ("p.toml", "[prompt]\nwidth = 'x'\n[[prompt.subset]]\nprompt = 'a'", r"p.toml:2: width = 'x'"),
        ("p.toml", "[prompt]\nprompt = 'a'", r"p.toml:1: .*\[\[prompt.subset\]\]"),
        ("p.toml", "prompt = 3", r"p.toml:1: .*\[\[prompt.subset\]\]"),
        ("p.toml", "[prompt", r"p.toml: not valid TOML"),
        ("p.json", '[\n"a",\n{"prompt": 3}]', r"p.json:3: prompt = 3: should be a text"),
        ("p.json", '[{"prompt": "a"},\n\n 7]', r"p.json:3: a sample prompt is an object or a text"),
        ("p.json", '["a", {"prompt": "b", "width": true}]', r"p.json:1: width = True"),
        ("p.json", '[{"prompt": "\\ud800"}]', r"halves of characters"),
        ("p.json", '[{"prompt": "a", "controlnet_image": "x"}]', r"controlnet_image: ControlNet"),
        ("p.json", "{}", r"p.json: sample prompts are a list"),
        ("p.json", '[\n"a"', r"p.json:2: not valid JSON"),
        ("p.json", "[" * 100_000, r"p.json.*: not valid JSON"),
        ("p.txt", "# nothing\n\n", r"p.txt: holds no prompt"),
        ("p.json", "[]", r"p.json: holds no prompt"),
        ("p.txt", b"a\n\xff", r"p.txt:2: not UTF-8"),
        ("p.txt", "a" * 1_000_001, r"larger than 1000 kB"),
        ("p.yaml", "a", r"p.yaml: sample prompts are read from .txt, .toml, .json"),
    ],
)
def test_wrong_prompts_name_file_line_and_value(write, name, text, message):
    with pytest.raises(EngineError, match=message):
        read_prompts(write(name, text))


def test_all_that_is_wrong_is_said_at_once(write):
    with pytest.raises(ProblemsError) as caught:
        read_prompts(write("p.txt", "a --w x --zz\nb\nc --s 0"))

    assert [p.where.rpartition("/")[2] for p in caught.value.problems] == ["p.txt:1", "p.txt:1", "p.txt:3"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"none.txt: .*No such file"):
        read_prompts(tmp_path / "none.txt")


def test_hostile_text_is_shown_escaped(write):
    with pytest.raises(EngineError) as caught:
        read_prompts(write("p.txt", "a --w \x1b[31m"))

    assert "\x1b" not in str(caught.value)


def test_prompts_load_without_torch():
    code = "import sys, engine.prompts; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "prompt", [FULL, SamplePrompt(prompt="a dog"), SamplePrompt(prompt="", seed=0, scale=1.0, sample_sampler="ddim")]
)
def test_a_prompt_as_a_line_reads_back_as_itself(prompt):
    """What a person edits is what the file says."""
    assert read_prompt(prompt_line(prompt)) == prompt


def test_a_line_of_text_is_one_line():
    """Line breaks of TOML and JSON prompts mean no more than spaces."""
    assert prompt_line(SamplePrompt(prompt="a\n cat", width=64)) == "a cat --w 64"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --w abc --s 0", "width = 'abc': should be a whole number from 1 to 8192"),
        ("a --ar 16:9", "--ar is not an option of a prompt (known are --w --h --d --s --l --n --ss)"),
        ("a --ss \x1b[31m", "sample_sampler = '\\x1b[31m': should be one of ddim, "),
    ],
)
def test_what_is_wrong_with_a_typed_prompt_is_one_sentence(line, message):
    """The first thing that is wrong; there is no file to name."""
    with pytest.raises(EngineError) as caught:
        read_prompt(line)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
