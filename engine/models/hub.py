"""Fetching a model from the Hugging Face hub: only the files that are needed, safetensors only, and clear refusals."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import EngineError, safe_text
from engine.paths import written_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(:[\w./-]{1,100})?")
_WEIGHTS = "diffusion_pytorch_model"
_BESIDES = re.compile(
    r"model_index\.json|(unet|vae|text_encoder)/config\.json|scheduler/scheduler_config\.json"
    r"|tokenizer/(vocab\.json|merges\.txt|tokenizer_config\.json|special_tokens_map\.json)"
)
# From the state's own folder, from the folder of states, or from a run's.
_STATE = re.compile(r"(state/)?(step-\d{8,}/)?[\w.-]+\.(safetensors|json)")
Progress = Callable[[str, int, int], None]


def is_hub_id(source: str) -> bool:
    """Tell whether a text could be a hub id such as `owner/name` or `owner/name:revision`."""
    return bool(_HUB_ID.fullmatch(source))


def find_model(source: str, progress: Progress | None = None, *, is_vae: bool = False) -> Path:
    """Return the local path of a model: itself where it exists, else the download of the hub id.

    The hub is asked only for what is no local path. `progress` hears of file name, number and count; of a VAE's
    repository, or a whole model's, `is_vae` fetches the VAE alone.

    Raises:
        EngineError: It is neither, or can't be fetched; the message says how to place the files by hand.
    """
    path = written_path(source)
    if source and path.exists():
        return path
    if not is_hub_id(source):
        raise EngineError(f"{safe_text(source)}: no such model file or folder, and no hub id; check the path")
    from huggingface_hub import HfApi

    return download(source, HfApi(), progress, is_vae=is_vae)


def download(source: str, api: "HfApi", progress: Progress | None = None, *, is_vae: bool = False) -> Path:
    """Download the model `owner/name` or `owner/name:revision` into the hub's cache and return its folder.

    Raises:
        EngineError: The cause, and how to place the files by hand.
    """
    return download_files(source, api, lambda names: _needed(source, names, is_vae=is_vae), progress)


def fetch_state(name: str, token: str | None = None) -> Path:
    """Download the state, or the run's states, at `owner/name/path` or `owner/name/path:revision`; return its folder.

    Raises:
        EngineError: The name is of another form, there is no state under it, or it can't be fetched.
    """
    from huggingface_hub import HfApi

    place, _, revision = name.partition(":")
    owner, _, rest = place.partition("/")
    repo, _, inner = rest.partition("/")
    source = f"{owner}/{repo}" + (f":{revision}" if revision else "")
    if not is_hub_id(source):
        raise EngineError(
            f"resume = {safe_text(name)}: with resume_from_huggingface it is owner/name/path/of/state, perhaps with "
            ":revision, in a repository of models"
        )
    prefix = f"{inner.strip('/')}/" if inner else ""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    folder = download_files(source, api, lambda names: _state_files(name, names, prefix)) / inner
    return folder.parent if folder.name == "state" else folder


def _state_files(name: str, names: Sequence[str], prefix: str) -> list[str]:
    found = [file for file in names if file.startswith(prefix) and _STATE.fullmatch(file.removeprefix(prefix))]
    if not found:
        raise EngineError(
            f"resume = {safe_text(name)}: there is no state of this program's in the repository; check it"
        )
    return found


def download_files(
    source: str,
    api: "HfApi",
    choose: Callable[[Sequence[str]], Sequence[str]],
    progress: Progress | None = None,
    *,
    is_checked: bool = False,
) -> Path:
    """Download the chosen files of one commit into the hub's cache and return their folder.

    `is_checked` compares each with the hash that the hub lists, which reads it whole every time.

    Files that are there already are not fetched again, and one that broke off is resumed.

    Raises:
        EngineError: The cause, and how to place the files by hand.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = source.partition(":")
    try:
        if is_offline_mode():
            return _cached(repo, revision)
        info = api.model_info(repo, revision=revision or None, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = choose(list(siblings))
        for number, name in enumerate(names, start=1):
            if progress:
                progress(name, number, len(names))
            # The commit that was listed, so that an upload meanwhile can't mix two versions.
            local = Path(api.hf_hub_download(repo, name, revision=getattr(info, "sha", None) or revision or None))
            if is_checked:
                _check_hash(source, local, getattr(siblings[name], "lfs", None))
        return local.parents[len(Path(name).parts) - 1]
    except (_transport_error(), HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        _refuse(source, error)


def _check_hash(source: str, local: Path, lfs: object) -> None:
    """Compare a large file with the sha256 that the hub states; small ones have none."""
    expected = getattr(lfs, "sha256", None)
    if not expected:
        return
    with local.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise EngineError(
            f"{safe_text(source)}: {safe_text(local.name)} is not what the hub lists (sha256 {found[:12]}... instead of"
            f" {expected[:12]}...); delete {safe_text(str(local))} and fetch it again"
        )


def _transport_error() -> type[Exception]:
    """Return what the hub client's HTTP library raises; which library that is, its version decides."""
    from huggingface_hub import get_session

    library: Any = sys.modules[type(get_session()).__module__.partition(".")[0]]
    error: type[Exception] = library.HTTPError
    return error


def _cached(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))


def _needed(source: str, names: Sequence[str], *, is_vae: bool) -> list[str]:
    """Choose one set of weights for each part, and the small files that go with them."""
    if is_vae:
        root = "" if any(name.startswith(_WEIGHTS) for name in names) else "vae/"
        return [*(name for name in names if name == f"{root}config.json"), *_weights(source, names, root + _WEIGHTS)]
    stems = [f"unet/{_WEIGHTS}", "text_encoder/model", f"vae/{_WEIGHTS}"]
    weights = [name for stem in stems for name in _weights(source, names, stem)]
    return [*(name for name in names if _BESIDES.fullmatch(name)), *weights]


def _weights(source: str, names: Sequence[str], stem: str) -> list[str]:
    """Choose full precision before fp16, one file before shards."""
    for middle in ("", ".fp16"):
        whole = f"{stem}{middle}.safetensors"
        if whole in names:
            return [whole]
        shard = re.compile(re.escape(stem + middle) + r"(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)")
        shards = [name for name in names if shard.fullmatch(name)]
        if shards:
            return shards
    raise EngineError(
        f"{safe_text(source)}: this hub model has no {stem}.safetensors, and other kinds of file are not fetched;"
        f" {_by_hand(source)}"
    )


def _by_hand(source: str) -> str:
    repo = safe_text(source.partition(":")[0])
    return f"download {repo} by other means into a folder and give that folder (or one .safetensors file) instead"


def _refuse(source: str, error: Exception) -> NoReturn:
    raise EngineError(f"{safe_text(source)}: not on this machine, and {_cause(error)}; {_by_hand(source)}") from error


def _cause(error: Exception) -> str:
    from huggingface_hub import errors

    causes: list[tuple[type[Any] | tuple[type[Any], ...], str]] = [
        (errors.GatedRepoError, "the hub wants its terms accepted first (then `hf auth login`)"),
        (errors.RepositoryNotFoundError, "the hub knows no such model, or it is private (`hf auth login`)"),
        (errors.RevisionNotFoundError, "the hub knows no such revision of it"),
        ((errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled), "the hub can't be reached or is switched off"),
        (errors.HFValidationError, "the hub id is not valid"),
        (errors.HfHubHTTPError, f"the hub answered with an error ({safe_text(str(error), 120)})"),
        (_transport_error(), f"the hub can't be reached ({safe_text(str(error), 120)})"),
    ]
    for kind, words in causes:
        if isinstance(error, kind):
            return words
    return f"fetching it failed ({safe_text(str(error), 120)})"
