"""Where a captioner's files come from: a folder of the user, else the hub, asked for just these. Torch-free."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from engine.errors import EngineError, safe_text
from engine.models.hub import download_files, is_hub_id
from engine.paths import written_path


def find_files(
    source: str, wanted: Sequence[Sequence[str]], optional: Sequence[str] = (), *, revision: str = ""
) -> Path:
    """Return the folder with a captioner's files.

    Args:
        source: A folder, a file in it, a hub id `owner/name[:revision]`, or `owner/name/folder` on the hub.
        wanted: Sets of file names, the first whose first name is there counts; "" stands for any .onnx.
        optional: Names of small files that are fetched too where they are.
        revision: Of a hub id: a branch, tag or commit, as after the colon.

    Raises:
        EngineError: There is no such folder, or the hub can't be reached; the message says how to place the files.
    """
    path = written_path(source)
    if path.exists():
        if revision:
            raise EngineError(f"--revision {safe_text(revision)}: {safe_text(source)} is a folder and has none")
        return path if path.is_dir() else path.parent
    if revision and ":" in source:
        raise EngineError(f"--revision {safe_text(revision)}: {safe_text(source)} names one too; say it once")
    repo, inner = _split(f"{source}:{revision}" if revision else source)
    if not is_hub_id(repo):
        raise EngineError(f"{safe_text(source)}: no such folder, and no hub id; check the path")
    from huggingface_hub import HfApi

    prefix = f"{inner}/" if inner else ""

    def choose(names: Sequence[str]) -> list[str]:
        besides = [prefix + name for name in optional if prefix + name in names]
        return [*_choose(source, names, prefix, wanted), *besides]

    folder = download_files(repo, HfApi(), choose, is_checked=True)
    return folder / inner if inner else folder


def source_of(folder: Path) -> str:
    """Return a captioner's folder as text: repository and commit where it lies in the hub's cache."""
    parts = folder.parts
    if "snapshots" in parts[1:-1]:
        place = parts.index("snapshots")
        owner_and_name = parts[place - 1].removeprefix("models--").replace("--", "/")
        return f"{owner_and_name} at {parts[place + 1]}"
    return str(folder)


def _split(source: str) -> tuple[str, str]:
    """Return repository with revision, and the folder inside it."""
    name, colon, revision = source.partition(":")
    parts = PurePosixPath(name).parts
    return "/".join(parts[:2]) + colon + revision, "/".join(parts[2:])


def _choose(source: str, names: Sequence[str], prefix: str, wanted: Sequence[Sequence[str]]) -> list[str]:
    for first, *others in wanted:
        if prefix + first not in names:
            continue
        chosen = [prefix + first]
        for other in others:
            found = [name for name in names if _fits(name, prefix, other)]
            if found:
                return [*chosen, found[0], *(name for name in names if name == f"{found[0]}.data")]
    kinds = ", or ".join(" and ".join(name or "an .onnx" for name in names) for names in wanted)
    raise EngineError(f"{safe_text(source)}: the hub's model has not {kinds}; other kinds of file are not fetched")


def _fits(name: str, prefix: str, wanted: str) -> bool:
    return name == prefix + wanted if wanted else name.startswith(prefix) and name.endswith(".onnx")
