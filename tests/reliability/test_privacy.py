"""Demand 11 of docs/reliability.md: nothing is sent, nothing listens, a run folder names no person and no machine."""

import contextlib
import getpass
import logging
import platform
import socket
from pathlib import Path

import pytest

from engine.librarylog import library_log
from engine.redact import redact
from tests.engine.run_support import go

TOKEN = "hf_" + "AbCd1234" * 4
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def denied(monkeypatch):
    """Nothing may connect, send or listen on the internet; urllib3 makes a socket when imported, to ask for IPv6."""
    calls = []

    def denying(name):
        def deny(self, *_):
            calls.append((name, self.family))
            raise PermissionError("no network here")

        return deny

    names = ("connect", "connect_ex", "listen", "sendto")
    guarded = type("Guarded", (socket.socket,), {name: denying(name) for name in names})
    monkeypatch.setattr(socket, "socket", guarded)
    return calls


def names_of_this_machine():
    """What a run folder must not hold, where it is long enough to be told from any other word."""
    found = {str(Path.home()), platform.node(), socket.gethostname()}
    with contextlib.suppress(KeyError, OSError):
        found.add(getpass.getuser())
    return {name for name in found if len(name) > 4}


def test_a_full_run_opens_no_connection_and_leaves_no_name_or_token(tmp_path, monkeypatch, denied):
    """Models, samples, events, log, TensorBoard, caches, lock: contents and file names."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(platform, "node", lambda: "machine-of-somebody")
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-of-somebody")
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --s 1\n")

    run = go(
        tmp_path, max_train_steps=2, sample_prompts=str(tmp_path / "prompts.txt"), sample_every_n_steps=1,
        logging_dir=str(tmp_path / "out" / "boards"), cache_latents_to_disk=True, save_every_n_steps=1,
    )  # fmt: skip

    assert run.code == 0
    assert denied == []
    secrets = {TOKEN, KEY, "machine-of-somebody", *names_of_this_machine()}
    files = [path for folder in ("out", "cache") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    for path in files:
        content = path.read_bytes()
        found = [name for name in secrets if name.encode() in content or name in path.name]
        assert not found, (path.name, found)


def test_run_toml_names_its_files_from_its_own_folder(tmp_path):
    """Whoever gets the folder learns nothing of where it lay."""
    run = go(tmp_path, max_train_steps=1)

    for name in ("run.toml", "dataset.toml"):
        assert str(tmp_path) not in (run.folder / name).read_text()


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        (f"token is {TOKEN}!", "token is [secret left out]!"),
        (f"wandb: api_key={KEY}", "wandb: api_key=[secret left out]"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer [secret left out]"),
        (f"commit {KEY} of the model", f"commit {KEY} of the model"),
        ("hf_short stays", "hf_short stays"),
    ],
)
def test_secrets_are_left_out_and_commits_stay(text, stays):
    """Hugging Face tokens, wandb keys, authorization headers."""
    assert redact(text) == stays


def test_what_libraries_log_and_print_is_redacted(tmp_path, monkeypatch):
    """Also the value of a variable that looks like nothing."""
    monkeypatch.setenv("WANDB_API_KEY", "plain-words-as-a-key")
    with library_log(tmp_path / "log.txt", takes_output=True):
        logging.getLogger("library").warning("login with %s", TOKEN)
        print("key: plain-words-as-a-key")

    text = (tmp_path / "log.txt").read_text()
    assert TOKEN not in text
    assert "plain-words-as-a-key" not in text
    assert text.count("[secret left out]") == 2
