"""`data caption`, `data tag` and their classic names: from flags to a run of a captioner. Torch-free."""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from engine.captioning.base import CaptionerOptions
from engine.captioning.captioners import CAPTIONERS
from engine.captioning.metadata import TextField
from engine.captioning.run import Result, Summary, Work, caption_pictures, progress_text, summary_text
from engine.captioning.tagging import TagOptions, parse_replacements, read_list
from engine.captioning.texts import FolderTexts, MetadataTexts, Mode, diff
from engine.control import STOP_CODES
from engine.errors import EngineError, safe_text
from engine.hardware import available_cores
from engine.setting_types import CaptionerName

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]

DONE, FAILED = 0, 1
_PROGRESS_SECONDS = (0.2, 10.0)  # On a terminal, and elsewhere.


def register(add: Add) -> None:
    """Add the verbs that run a model."""
    for name, text in (
        ("caption", "Write a caption for each picture with BLIP."),
        ("make_captions", "As sd-scripts' make_captions.py: `data caption` by its old name."),
    ):
        sub = add(name, text, _caption)
        _add_common(sub, extension=".caption", batch_size=1 if name != "caption" else 4)
        _add_blip(sub)
        sub.set_defaults(captioner="blip", field="caption")
    for name, text in (
        ("tag", "Write tags for each picture with a WD14 tagger or DeepDanbooru."),
        ("tag_images_by_wd14_tagger", "As sd-scripts' tagger: `data tag` by its old name."),
    ):
        sub = add(name, text, _tag)
        _add_common(sub, extension=".txt", batch_size=1 if name != "tag" else 8)
        _add_tagger(sub)
        sub.set_defaults(field="tags")


def _add_common(sub: argparse.ArgumentParser, *, extension: str, batch_size: int) -> None:
    sub.add_argument("train_data_dir", type=Path, help="The folder of pictures.")
    sub.add_argument("--caption_extension", default=extension, help="Extension of the files that are written.")
    sub.add_argument("--caption_extention", dest="caption_extension", help=argparse.SUPPRESS)
    sub.add_argument("--output_path", type=Path, help="Write into this metadata .json or .jsonl instead of files.")
    sub.add_argument("--full_path", action="store_true", help="In metadata: name pictures by their whole path.")
    sub.add_argument("--recursive", action="store_true", help="Take folders inside the folder too.")
    sub.add_argument("--batch_size", type=int, default=batch_size, help="Pictures described at once.")
    sub.add_argument("--max_data_loader_n_workers", type=int, help="Threads that decode pictures; else one a core.")
    sub.add_argument("--mode", choices=["replace", "append", "prepend", "skip"], default="replace",
                     help="What becomes of a text that is there: skip leaves it alone.")  # fmt: skip
    sub.add_argument("--revision", default="", help="Of a model on the hub: a branch, tag or commit; else the newest.")
    sub.add_argument("--limit", type=int, help="Only so many pictures, to look at before all are done.")
    sub.add_argument("--dry_run", action="store_true", help="Show what would change and write nothing.")
    sub.add_argument("--debug", action="store_true", help="Print each text.")
    sub.add_argument("--json", action="store_true", help="Print counts, and with --dry_run texts, as JSON on stdout.")


def _add_blip(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--caption_weights", default="", metavar="MODEL",
                     help="Folder or hub id; else Salesforce/blip-image-captioning-large.")  # fmt: skip
    sub.add_argument("--beam_search", action="store_true", help="Search with beams instead of drawing.")
    sub.add_argument("--num_beams", type=int, default=1, help="Beams of --beam_search.")
    sub.add_argument("--top_p", type=float, default=0.9, help="Share of the likeliest words that are drawn from.")
    sub.add_argument("--min_length", type=int, default=5, help="Least tokens of a caption.")
    sub.add_argument("--max_length", type=int, default=75, help="Most tokens of a caption.")
    sub.add_argument("--seed", type=int, default=42, help="Of the draws, together with each picture's name.")
    sub.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no", help="Number format.")


def _add_tagger(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--captioner", choices=["wd14", "deepdanbooru"], default="wd14", help="Which kind of tagger.")
    sub.add_argument("--repo_id", default="", metavar="MODEL", help="Hub id owner/name[:revision] or a folder.")
    sub.add_argument(
        "--model_dir", type=Path, help="A folder with the .onnx and its list of tags; wins over --repo_id."
    )
    sub.add_argument("--onnx", action="store_true", help="Taken, and always so: taggers run as ONNX.")
    sub.add_argument("--thresh", type=float, default=TagOptions().thresh, help="Least score of a tag.")
    sub.add_argument("--general_threshold", type=float, help="Least score of a general tag, if another.")
    sub.add_argument("--character_threshold", type=float, help="Least score of a character, if another.")
    for flag, text in (
        ("--remove_underscore", "Write blanks for underscores in tags longer than three characters."),
        ("--use_rating_tags", "Write the likeliest rating first."),
        ("--use_rating_tags_as_last_tag", "Write the likeliest rating last."),
        ("--character_tags_first", "Write characters before general tags."),
        ("--character_tag_expand", "Write name_(series) as the two tags name and series."),
        ("--append_tags", "As --mode append: add tags to those that are there."),
        ("--frequency_tags", "Print how often each tag was found."),
    ):
        sub.add_argument(flag, action="store_true", help=text)
    sub.add_argument("--undesired_tags", default="", metavar="TAGS", help="Tags that are never written.")
    sub.add_argument("--always_first_tags", default="", metavar="TAGS", help="Tags that come first where found.")
    sub.add_argument("--tag_replacement", default="", metavar="PAIRS", help="source1,target1;source2,target2")
    sub.add_argument("--caption_separator", default=", ", help="What stands between tags.")


def _caption(parsed: argparse.Namespace) -> int:
    options = CaptionerOptions(
        model=parsed.caption_weights,
        revision=parsed.revision,
        beam_search=parsed.beam_search,
        num_beams=parsed.num_beams,
        top_p=parsed.top_p,
        min_length=parsed.min_length,
        max_length=parsed.max_length,
        seed=parsed.seed,
        mixed_precision=parsed.mixed_precision,
    )
    return _run(parsed, options, parsed.mode, separator=", ")


def _tag(parsed: argparse.Namespace) -> int:
    names = TagOptions.__dataclass_fields__
    values = {name: value for name, value in vars(parsed).items() if name in names}
    values |= {
        "undesired_tags": read_list(parsed.undesired_tags, parsed.caption_separator),
        "always_first_tags": read_list(parsed.always_first_tags, parsed.caption_separator),
        "tag_replacement": parse_replacements(parsed.tag_replacement),
    }
    options = CaptionerOptions(
        model=str(parsed.model_dir or parsed.repo_id or ""), revision=parsed.revision, tags=TagOptions(**values)
    )
    mode: Mode = "append" if parsed.append_tags else parsed.mode
    return _run(parsed, options, mode, separator=parsed.caption_separator)


def _run(parsed: argparse.Namespace, options: CaptionerOptions, mode: Mode, *, separator: str) -> int:
    if parsed.batch_size < 1:
        raise EngineError(f"--batch_size {parsed.batch_size}: expected 1 or more")
    pictures = FolderTexts(parsed.train_data_dir, parsed.caption_extension, parsed.recursive)
    keys = pictures.keys()
    if not keys:
        raise EngineError(f"{safe_text(str(pictures.root))}: holds no pictures; --recursive looks into folders inside")
    for problem in pictures.problems:
        _say(f"{problem.severity}: {problem}")
    name: CaptionerName = parsed.captioner
    work = Work(
        pictures=pictures,
        texts=_target(parsed, pictures),
        captioner=CAPTIONERS[name](options),
        mode=mode,
        separator=separator,
        batch_size=parsed.batch_size,
        workers=max(1, parsed.max_data_loader_n_workers or available_cores()),
        keys=keys[: parsed.limit],
        full_path=parsed.full_path,
        is_dry=parsed.dry_run,
    )
    results: list[Result] = []
    with _stopping() as stopped:
        _say(f"model: {safe_text(work.captioner.source, limit=1000)}")
        summary = caption_pictures(
            work,
            progress=_progress(),
            cancel=lambda: bool(stopped),
            listener=lambda result: _listen(result, parsed, results),
        )
    return _report(parsed, summary, results, stopped)


def _target(parsed: argparse.Namespace, pictures: FolderTexts) -> FolderTexts | MetadataTexts:
    if parsed.output_path is None:
        return pictures
    if parsed.output_path.suffix.lower() not in {".json", ".jsonl"}:
        raise EngineError(f"--output_path {safe_text(str(parsed.output_path))}: expected a .json or .jsonl")
    field: TextField = parsed.field
    return MetadataTexts(parsed.output_path, field, may_be_new=True)


def _listen(result: Result, parsed: argparse.Namespace, results: list[Result]) -> None:
    if parsed.dry_run and parsed.json:
        results.append(result)
    elif parsed.dry_run and result.new is not None:
        _say(diff(result.key, result.old, result.new))
    elif parsed.debug and result.described is not None:
        _say(f"{safe_text(result.key)}: {safe_text(result.described.text, limit=2000)}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _progress() -> Callable[[int, int, float], None]:
    is_terminal = sys.stderr.isatty()
    every, last = _PROGRESS_SECONDS[not is_terminal], time.monotonic()

    def report(done: int, total: int, rate: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every and done < total:
            return
        last = now
        end = "\n" if done == total or not is_terminal else ""
        sys.stderr.write(
            ("\r" if is_terminal else "") + progress_text(done, total, rate) + ("  " + end if is_terminal else end)
        )
        sys.stderr.flush()

    return report


@contextlib.contextmanager
def _stopping() -> Iterator[list[str]]:
    """Let Ctrl-C and SIGTERM end the run after the batch; the name of the signal is put into the list."""
    stopped: list[str] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(signal.Signals(number).name)

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # Not in the main thread: then nobody signals us.
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(parsed: argparse.Namespace, summary: Summary, results: list[Result], stopped: list[str]) -> int:
    for error in summary.errors[:20]:
        _say(f"warning: {error}")
    _say(summary_text(summary) + (" (nothing was written)" if parsed.dry_run else ""))
    ranked = sorted(summary.frequencies.items(), key=lambda item: (-item[1], item[0]))
    if getattr(parsed, "frequency_tags", False) and not parsed.json:
        for tag, number in ranked:
            _say(f"{safe_text(tag)}: {number}")
    if parsed.json:
        document = {
            "described": summary.described, "written": summary.written, "kept": summary.kept,
            "resumed": summary.resumed, "errors": summary.errors, "frequencies": dict(ranked),
        }  # fmt: skip
        if parsed.dry_run:
            document["texts"] = {result.key: result.new for result in results}
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    if stopped:
        _say("interrupted; the same command goes on where it ended, `data undo` takes back what is done")
        return STOP_CODES.get(stopped[0], 130)
    return FAILED if summary.errors and not summary.described else DONE
