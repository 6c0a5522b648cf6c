"""`sdtui data ...`: merging, cleaning, counting and editing of captions and tags, and their undo. Torch-free."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.captioning import cache_cli, caption_cli
from engine.captioning.cleaning import CLASSIC, TABLES, make_cleaner
from engine.captioning.journal import commit, undo
from engine.captioning.metadata import EXTENSIONS, MergeOptions, Metadata, TextField, merge, picture_names
from engine.captioning.tags import TagEdit, TagQuery, parse_renames, split_tags, statistics
from engine.captioning.texts import (
    FolderTexts,
    MetadataTexts,
    check_extension,
    diff,
    load_metadata,
    metadata_change,
    open_texts,
    read_all,
)
from engine.errors import EngineError, safe_text

DONE, WRONG = 0, 2
LISTED = 20  # Names that are told one by one.

Verb = Callable[[argparse.Namespace], int]
Add = Callable[[str, str, Verb], argparse.ArgumentParser]


def register(add_verb: Add) -> None:
    """Add the verb `data` and its own verbs to the command line."""
    data = add_verb("data", "Caption, tag, merge, clean and cache a data set.", _help)
    verbs = data.add_subparsers(title="commands", metavar="COMMAND")
    data.set_defaults(data_parser=data)

    def add(name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(verb=verb)
        return sub

    caption_cli.register(add)
    cache_cli.register(add)
    _add_merge(add)
    _add_clean(add)
    _add_edit(add)
    stats = add("stats", "Count captions and tags of a folder or a metadata file.", _stats)
    _add_source(stats)
    stats.add_argument("--top", type=int, default=20, help="How many of the most frequent tags are listed.")
    stats.add_argument("--json", action="store_true", help="Print one JSON document on stdout.")
    back = add("undo", "Take back the newest change, byte for byte.", _undo)
    back.add_argument("path", type=Path, help="The folder or metadata file that was changed.")
    back.add_argument("--force", action="store_true", help="Also put back files that were edited since.")


def _help(parsed: argparse.Namespace) -> int:
    parsed.data_parser.print_help(sys.stderr)
    return WRONG


def say(line: str) -> None:
    """Tell a person."""
    sys.stderr.write(f"{line}\n")


def say_some(lines: Sequence[str], what: str) -> None:
    """Tell many things of a kind: their number and the first of them."""
    if lines:
        say(f"{len(lines)} {what}:")
        for line in lines[:LISTED]:
            say(f"  {line}")
        if len(lines) > LISTED:
            say(f"  and {len(lines) - LISTED} more")


# ---- merge


def _add_merge(add: Add) -> None:
    sub = add("merge", "Take captions and tags beside the pictures into a metadata file.", _merge)
    for name, text, fields in (
        ("merge_captions_to_metadata", "As sd-scripts' tool of this name.", ("caption",)),
        ("merge_dd_tags_to_metadata", "As sd-scripts' tool of this name.", ("tags",)),
    ):
        classic = add(name, text, _merge)
        _add_merge_flags(classic)
        classic.add_argument("--caption_extension", help="Extension of the files that are merged.")
        classic.set_defaults(fields=fields, keys="classic", tag_extension=None)
    _add_merge_flags(sub)
    sub.add_argument("--keys", choices=["path", "classic"], default="path",
                     help="path: by the path from the folder, which training finds; classic: by the stem.")  # fmt: skip
    sub.add_argument("--caption_extension", default=EXTENSIONS["caption"], help="Extension of the captions.")
    sub.add_argument("--tag_extension", default=EXTENSIONS["tags"], help="Extension of the tags.")
    sub.add_argument("--only", choices=["caption", "tags"], help="Merge captions or tags alone.")
    sub.set_defaults(fields=None)


def _add_merge_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("train_data_dir", type=Path)
    sub.add_argument("out_json", type=Path, help="A .json, or .jsonl for one line for each picture.")
    sub.add_argument("--in_json", type=Path, help="Metadata to start from; else the output itself where it exists.")
    sub.add_argument("--full_path", action="store_true", help="Name pictures by their whole path.")
    sub.add_argument("--recursive", action="store_true", help="Take folders inside the folder too.")
    sub.add_argument("--debug", action="store_true", help="Print each text that is merged.")
    sub.add_argument("--dry_run", action="store_true", help="Show what would change and write nothing.")


def _merge(parsed: argparse.Namespace) -> int:
    fields: Sequence[TextField] = parsed.fields or ((parsed.only,) if parsed.only else ("caption", "tags"))
    before = _start_of_merge(parsed)
    metadata: Mapping[str, Mapping[str, Any]] = before
    found = FolderTexts(parsed.train_data_dir, recursive=parsed.recursive)
    lacking: set[str] = set(found.keys())
    for field in fields:
        extension = _extension(parsed, field)
        check_extension(extension)
        options = MergeOptions(
            keys=parsed.keys, full_path=parsed.full_path, recursive=parsed.recursive, caption_extension=extension
        )
        files, texts = _files(found, extension)
        if parsed.keys == "classic":
            files = _classic_files(parsed.train_data_dir, files, options)
        folder = parsed.train_data_dir.absolute() if parsed.keys == "path" else parsed.train_data_dir
        metadata = merge(files, metadata, options, field=field, image_dir=folder.as_posix())
        lacking -= texts
    say_some([safe_text(name) for name in sorted(lacking)], "pictures have no text and are left out")
    for problem in found.problems:
        say(f"{problem.severity}: {problem}")
    if parsed.debug:
        _show_differences(before, metadata)
    return _write_metadata(parsed.out_json, before, metadata, "merge", is_dry=parsed.dry_run)


def _extension(parsed: argparse.Namespace, field: TextField) -> str:
    """Return what is merged as `field`; sd-scripts' tools have one flag for either."""
    is_tags = field == "tags" and parsed.tag_extension
    return parsed.tag_extension if is_tags else parsed.caption_extension or EXTENSIONS[field]


def _start_of_merge(parsed: argparse.Namespace) -> Metadata:
    """Return the metadata to start from, as sd-scripts chooses it."""
    if parsed.in_json is not None:
        return load_metadata(parsed.in_json)
    if parsed.out_json.is_file():
        say(f"{safe_text(str(parsed.out_json))} is there already and is added to")
        return load_metadata(parsed.out_json)
    return {}


def _files(found: FolderTexts, extension: str) -> tuple[dict[str, str | None], set[str]]:
    """Return pictures and caption files as `merge` takes them, and the pictures that have a text."""
    source = FolderTexts(found.root, extension, found.recursive)
    source._names = list(found.keys())  # noqa: SLF001 - the folder is walked once
    texts, problems = read_all(source, source.keys())
    if problems:
        raise EngineError("\n".join(problems))
    files: dict[str, str | None] = dict.fromkeys(texts)
    for key, text in texts.items():
        if text is not None:
            files[str(source.file(key).relative_to(source.root).as_posix())] = text
    return files, {key for key, text in texts.items() if text is not None}


def _classic_files(folder: Path, files: Mapping[str, str | None], options: MergeOptions) -> dict[str, str | None]:
    left_out = (
        set(files) - set(picture_names(files, options)) - {name for name, text in files.items() if text is not None}
    )
    say_some(
        [safe_text(name) for name in sorted(left_out)],
        f"pictures of {safe_text(str(folder))} are unknown to sd-scripts",
    )
    return dict(files)


def _write_metadata(
    path: Path, before: Mapping[str, Any], metadata: Mapping[str, Mapping[str, Any]], label: str, *, is_dry: bool
) -> int:
    changed = sum(before.get(key) != entry for key, entry in metadata.items())
    if is_dry:
        _show_differences(before, metadata)
    else:
        commit(path, label, [metadata_change(path, metadata)])
    verb = "would be written to" if is_dry else "written to"
    say(f"{len(metadata)} entries {verb} {safe_text(str(path))}, {changed} of them new or changed")
    return DONE


def _show_differences(before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]]) -> None:
    for key, entry in after.items():
        old = before.get(key, {})
        for field in ("caption", "tags"):
            if field in entry and entry[field] != old.get(field):
                say(diff(f"{key} ({field})", old.get(field), entry[field]))


# ---- clean


def _add_clean(add: Add) -> None:
    for name in ("clean", "clean_captions_and_tags"):
        sub = add(name, "Clean the captions and tags of a metadata file by a table of rules.", _clean)
        is_classic = name != "clean"
        sub.add_argument("in_json", type=Path, nargs="?")
        sub.add_argument("out_json", type=Path, nargs="?", help="Where to write; may be the input itself.")
        sub.add_argument("--rules", default=CLASSIC if is_classic else "default", metavar="RULES",
                         help=f"{CLASSIC} (sd-scripts' own), {', '.join(TABLES)}, or a table.toml.")  # fmt: skip
        sub.add_argument("--write_rules", type=Path, metavar="FILE", help="Write the table to edit, and nothing else.")
        sub.add_argument("--debug", action="store_true", help="Print each text that changes.")
        sub.add_argument("--dry_run", action="store_true", help="Show what would change and write nothing.")


def _clean(parsed: argparse.Namespace) -> int:
    if parsed.write_rules is not None:
        return _write_rules(parsed.rules, parsed.write_rules)
    if parsed.in_json is None or parsed.out_json is None:
        raise EngineError("data clean: give IN.json and OUT.json (they may be the same file)")
    cleaner = make_cleaner(parsed.rules)
    before = load_metadata(parsed.in_json)
    after: Metadata = {}
    for key, entry in before.items():
        after[key] = dict(entry)
        if isinstance(entry.get("tags"), str):
            after[key]["tags"] = cleaner.tags(entry["tags"])
        if isinstance(entry.get("caption"), str):
            after[key]["caption"] = cleaner.caption(entry["caption"])
    for field in ("caption", "tags"):
        lacking = [safe_text(key) for key, entry in before.items() if not isinstance(entry.get(field), str)]
        if lacking and len(lacking) < len(before):
            say_some(lacking, f"entries have no {field}")
    if parsed.debug and not parsed.dry_run:
        _show_differences(before, after)
    return _write_metadata(parsed.out_json, before, after, f"clean --rules {parsed.rules}", is_dry=parsed.dry_run)


def _write_rules(rules: str, path: Path) -> int:
    if rules not in TABLES:
        raise EngineError(f"--write_rules: --rules names the table to copy, one of {', '.join(TABLES)}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TABLES[rules].read_text("utf-8"))
    except OSError as error:
        raise EngineError(f"{safe_text(str(path))}: can't be written ({error.strerror or error})") from error
    say(f"wrote {safe_text(str(path))}: edit it, then --rules {safe_text(str(path))}")
    return DONE


# ---- edit, count, undo


def _add_source(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("path", type=Path, help="A folder of pictures, or a metadata .json or .jsonl.")
    sub.add_argument("--field", choices=["tags", "caption"], default="tags", help="Of a metadata file: which text.")
    sub.add_argument("--caption_extension", default=".txt", help="Of a folder: the extension of its caption files.")
    sub.add_argument("--caption_separator", default=", ", help="What stands between tags.")
    sub.add_argument("--recursive", action="store_true", help="Take folders inside the folder too.")
    sub.add_argument("--glob", default="*", help="Only pictures whose name matches, such as 'cats/*'.")
    sub.add_argument("--query", default="", help="Only pictures with these tags: 'cat, !dog | bird*'.")


def _add_edit(add: Add) -> None:
    sub = add("tags", "Rename, remove, add and reorder tags over a selection of pictures.", _tags)
    _add_source(sub)
    sub.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="May be given several times.")
    for flag, text in (
        ("--remove", "Tags to remove; * and ? stand for anything."),
        ("--add", "Tags to add at the end where they are missing."),
        ("--prepend", "Tags to add in front where they are missing."),
        ("--first", "Tags to bring to the front, in this order, where they occur."),
    ):
        sub.add_argument(flag, action="append", default=[], metavar="TAGS", help=text)
    sub.add_argument("--sort", action="store_true", help="Put the other tags in the order of the alphabet.")
    sub.add_argument("--dry_run", action="store_true", help="Show what would change and write nothing.")


def _source(parsed: argparse.Namespace) -> FolderTexts | MetadataTexts:
    return open_texts(parsed.path, field=parsed.field, extension=parsed.caption_extension, recursive=parsed.recursive)


def _selected(parsed: argparse.Namespace, source: FolderTexts | MetadataTexts) -> dict[str, str | None]:
    query = TagQuery(parsed.query)
    separator = parsed.caption_separator.strip() or parsed.caption_separator
    keys = [key for key in source.keys() if fnmatchcase(key, parsed.glob)]  # noqa: SIM118 - no mapping
    texts, problems = read_all(source, keys)
    say_some(problems, "texts can't be read and stay as they are")
    return {key: text for key, text in texts.items() if query.matches(split_tags(text or "", separator))}


def _listed(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(tag for word in words for tag in split_tags(word))


def _tags(parsed: argparse.Namespace) -> int:
    edit = TagEdit(
        rename=parse_renames(parsed.rename),
        remove=_listed(parsed.remove),
        prepend=_listed(parsed.prepend),
        append=_listed(parsed.add),
        first=_listed(parsed.first),
        sort=parsed.sort,
    )
    if edit == TagEdit():
        raise EngineError("data tags: say what to do: --rename, --remove, --add, --prepend, --first or --sort")
    source = _source(parsed)
    texts = _selected(parsed, source)
    new = {key: edit.apply(text or "", parsed.caption_separator) for key, text in texts.items()}
    changed = {key: text for key, text in new.items() if text != (texts[key] or "")}
    if parsed.dry_run:
        for key, text in changed.items():
            say(diff(key, texts[key], text))
    elif changed:
        commit(source.root, "tags", source.changes(changed))
    say(f"{len(changed)} of {len(texts)} selected pictures {'would change' if parsed.dry_run else 'changed'}")
    return DONE


def _stats(parsed: argparse.Namespace) -> int:
    texts = _selected(parsed, _source(parsed))
    separator = parsed.caption_separator.strip() or parsed.caption_separator
    counted = statistics(texts.values(), most=parsed.top, separator=separator)
    if parsed.json:
        json.dump(counted.as_json(), sys.stdout, indent=1)
        sys.stdout.write("\n")
        return DONE
    say(f"{counted.pictures} pictures, {counted.without_text} without text, {counted.tags} different tags")
    say(f"{counted.mean_tags:.1f} tags a picture, the longest text has {counted.characters} characters")
    for tag, number in counted.most_frequent:
        say(f"{number:>8}  {safe_text(tag)}")
    return DONE


def _undo(parsed: argparse.Namespace) -> int:
    undone = undo(parsed.path, is_forced=parsed.force)
    say(f"undone: {safe_text(undone.label)}; {len(undone.restored)} files are as they were before")
    say_some(
        [safe_text(str(path)) for path in undone.kept], "files were edited since and stay (--force puts them back)"
    )
    return DONE
