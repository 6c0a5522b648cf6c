"""From bare pictures to a finished training, by the commands of the script that README prints; and `data cache`."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.captioning import caption_cli
from engine.dataset.findings import Findings
from engine.dataset.metadata import locate, read_metadata
from engine.events import read_events
from sdtui.__main__ import main
from sdtui.starter import write_pictures
from tests.engine import run_support
from tests.engine.captioning import models_support as models

ROOT = Path(__file__).parents[3]
SCRIPT = (ROOT / "docs" / "pictures_to_model.sh").read_text("utf-8")


def commands():
    """The script's commands, each as words with $NAMES in them."""
    return [line for line in SCRIPT.splitlines() if line.startswith("sdtui ")]


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Six starter pictures without captions, a run.toml, and the small models by the script's own variables."""
    write_pictures(tmp_path / "pictures")
    for path in (tmp_path / "pictures").glob("*.caption"):
        path.unlink()
    for path in sorted((tmp_path / "pictures").iterdir())[6:]:
        path.unlink()
    (tmp_path / "run.toml").write_text(
        f'pretrained_model_name_or_path = "{run_support.tiny_model()}"\ntrain_data_dir = "pictures"\n'
        'in_json = "meta.json"\nresolution = 64\nmin_bucket_reso = 64\nenable_bucket = true\ntrain_batch_size = 2\n'
        'max_train_steps = 2\ncache_latents_to_disk = true\ncache_dir = "cache"\noutput_dir = "out"\n'
    )
    monkeypatch.chdir(tmp_path)
    values = {"PICTURES": "pictures", "META": "meta.json", "RUN": "run.toml"}
    for name, value in {**values, "BLIP": models.blip(), "TAGGER": models.wd14_v14()}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def run(line):
    return main(shlex.split(os.path.expandvars(line))[1:])


def test_readme_prints_the_script():
    """Word for word."""
    assert SCRIPT in (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"^(\w+)=", SCRIPT, re.MULTILINE)) == {"PICTURES", "META", "RUN", "BLIP", "TAGGER"}


def test_bare_pictures_to_a_finished_training(chain, capsys):
    """Every command ends with 0; captions and tags of each picture are trained; the cache is not made twice."""
    pictures = {path.name for path in (chain / "pictures").iterdir()}
    for line in commands():
        assert run(line) == 0, (line, capsys.readouterr().err)

    meta = json.loads((chain / "meta.json").read_text())
    assert set(meta) == pictures
    for entry in meta.values():
        assert set(entry["caption"].split()) <= set(models.WORDS)
        assert entry["tags"].startswith("1girl, ")
        assert "_" not in entry["tags"].replace("^_^", "")
    events = read_events(chain / "out" / "events.jsonl")
    assert [event.kind for event in events][-1] == "finished"
    assert not [event for event in events if event.kind == "progress" and event.stage in {"latents", "text"}]
    assert (chain / "out" / "last.safetensors").is_file()
    texts = [path.suffix for path in (chain / "pictures").iterdir() if path.name not in pictures]
    assert sorted(texts) == [".caption"] * 6 + [".txt"] * 6


def test_bare_pictures_of_every_kind_to_clean_metadata(chain, golden, capsys, monkeypatch):
    """The fourteen real pictures: alpha, palette, grey, WebP, EXIF, extreme shapes; training finds every key."""
    monkeypatch.setenv("PICTURES", "real")
    (chain / "real").mkdir()
    for path in (golden / "dataset" / "images").iterdir():
        if path.suffix not in {".caption", ".txt"}:
            shutil.copy(path, chain / "real")
    pictures = sorted(path.name for path in (chain / "real").iterdir())
    for line in commands()[:5]:
        assert run(line) == 0, (line, capsys.readouterr().err)

    findings = Findings()
    found = locate(read_metadata(chain / "meta.json", findings), chain / "real", findings)
    assert sorted(Path(path).name for path in found) == pictures
    assert len(pictures) == 14
    assert all(entry.caption and entry.tags for entry in found.values())
    assert findings.problems() == ()


def test_npz_files_are_written_on_request_and_never_over_others(chain, capsys):
    """sd-scripts' names, arrays and float32; a file that is there stays; undo removes the new ones."""
    (chain / "meta.json").write_text(json.dumps({path.name: {"tags": "a"} for path in (chain / "pictures").iterdir()}))
    first = min((chain / "pictures").iterdir())
    with Image.open(first) as picture:
        width, height = picture.size
    mine = first.with_name(f"{first.stem}_{width:04d}x{height:04d}_sd.npz")
    mine.write_bytes(b"mine")
    assert main(["data", "cache", "run.toml", "--npz", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert (document["latents"], document["npz_written"], len(document["npz_kept"])) == (6, 5, 1)
    assert mine.read_bytes() == b"mine"
    made = [path for path in (chain / "pictures").glob("*_sd.npz") if path != mine]
    with np.load(made[0]) as arrays:
        assert sorted(arrays) == ["crop_ltrb", "latents", "original_size"]
        assert arrays["latents"].dtype == np.float32
        assert arrays["latents"].shape[0] == 4
    assert main(["data", "undo", "pictures"]) == 0
    assert list((chain / "pictures").glob("*_sd.npz")) == [mine]


def test_cache_says_when_training_would_not_use_it(chain, capsys):
    """And sd-scripts' name of it leads to what does the same."""
    (chain / "meta.json").write_text("{}")
    assert main(["data", "cache", "run.toml", "--set", "cache_latents_to_disk=false"]) == 2
    assert "does not set cache_latents_to_disk" in capsys.readouterr().err
    assert main(["data", "prepare_buckets_latents", "a", "b", "c"]) == 2
    assert "data cache RUN.toml" in capsys.readouterr().err


def test_flags_are_those_of_sd_scripts():
    """Every flag of its two tools is taken, but for those of TensorFlow and the download folder's."""
    import argparse

    known = {}

    def add(name, _text, _verb):
        known[name] = argparse.ArgumentParser()
        return known[name]

    caption_cli.register(add)
    options = {name: set(parser._option_string_actions) for name, parser in known.items()}
    assert options["make_captions"] >= {
        "--caption_weights", "--caption_extension", "--beam_search", "--batch_size", "--max_data_loader_n_workers",
        "--num_beams", "--top_p", "--max_length", "--min_length", "--seed", "--debug", "--recursive",
    }  # fmt: skip
    assert options["tag_images_by_wd14_tagger"] >= {
        "--repo_id", "--model_dir", "--batch_size", "--max_data_loader_n_workers", "--caption_extension", "--thresh",
        "--caption_extention", "--general_threshold", "--character_threshold", "--recursive", "--remove_underscore",
        "--debug", "--undesired_tags", "--frequency_tags", "--onnx", "--append_tags", "--use_rating_tags",
        "--use_rating_tags_as_last_tag", "--character_tags_first", "--always_first_tags", "--caption_separator",
        "--tag_replacement", "--character_tag_expand", "--output_path",
    }  # fmt: skip
