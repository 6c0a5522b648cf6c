"""Terminals taken away at random moments of a training in the wizard's process, and what becomes of it.

Four ways: a closed pseudo-terminal, SIGHUP, tmux kill-pane, and an SSH connection to this machine whose client is
killed. After each, the training has to reach its last step, its process to end by itself, and `attach` to show the
run. tmux and sshd are left out, and named, where they are not installed.
Run as `python -m benchmarks lost_terminals [--trials 20] [--ways closed hangup tmux ssh]`.
"""

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.events import Finished, Step, read_events
from tests.engine.run_support import pictures, tiny_model, write_run
from tests.sdtui.pty_support import REPOSITORY, PtyProcess

STEPS = 150
SCRIPT = """
import os, sys
from pathlib import Path
Path({pid!r}).write_text(str(os.getpid()))
from sdtui.app import SdtuiApp
from sdtui.guard import run_app
from engine.settings_io import load_run
app = SdtuiApp()
app._after_first_paint = lambda: app.start_here(load_run(Path({run!r})))
sys.exit(run_app(app))
"""
ATTACH = "import sys; from sdtui.__main__ import main; sys.exit(main(['attach', {folder!r}]))"


@dataclass(slots=True)
class Tally:
    """What came of the trials of one way."""

    finished: int = 0
    ended: int = 0
    attached: list[float] = field(default_factory=list)
    steps_at_loss: list[int] = field(default_factory=list)


@contextmanager
def closed(script: Path) -> Iterator[Callable[[], None]]:
    process = PtyProcess(script.read_text(), size=(120, 40))
    try:
        yield process.hang_up
    finally:
        reap(process.process)


@contextmanager
def hangup(script: Path) -> Iterator[Callable[[], None]]:
    process = PtyProcess(script.read_text(), size=(120, 40))
    try:
        yield lambda: process.send(signal.SIGHUP)
    finally:
        reap(process.process)


def reap(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)


@contextmanager
def tmux(script: Path) -> Iterator[Callable[[], None]]:
    name = f"sdtui-trial-{os.getpid()}"
    command = shlex.join([sys.executable, str(script)])
    subprocess.run(["tmux", "-L", name, "new-session", "-d", "-x", "120", "-y", "40", command], check=True)
    try:
        yield lambda: subprocess.run(["tmux", "-L", name, "kill-pane"], check=True) and None
    finally:
        subprocess.run(["tmux", "-L", name, "kill-server"], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def ssh(script: Path) -> Iterator[Callable[[], None]]:
    """Connect to an sshd of our own with keys of our own."""
    folder = Path(tempfile.mkdtemp())
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = str(random.randint(20_000, 60_000))
    options = {
        "HostKey": folder / "host", "AuthorizedKeysFile": folder / "authorized", "ListenAddress": "127.0.0.1",
        "Port": port, "PidFile": folder / "pid", "StrictModes": "no", "PermitRootLogin": "yes", "UsePAM": "no",
    }  # fmt: skip
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in options.items()))
    server = subprocess.Popen([shutil.which("sshd") or "", "-D", "-f", str(folder / "config")])
    time.sleep(1.0)
    remote = f"cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join([sys.executable, str(script)])}"
    flags = ["-tt", "-p", port, "-i", str(folder / "user"), "-o", "StrictHostKeyChecking=no"]
    flags += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    client = subprocess.Popen(
        ["ssh", *flags, "127.0.0.1", remote], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield client.kill
    finally:
        client.kill()
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


WAYS = {"closed": closed, "hangup": hangup, "tmux": tmux, "ssh": ssh}
NEEDS = {"tmux": "tmux", "ssh": "sshd"}


def trial(way: str, rng: random.Random, tally: Tally) -> None:
    """Start a training in the screen's process, take the terminal away, and look on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out"
        run = write_run(folder, pictures=pictures(), model=tiny_model(), max_train_steps=STEPS)
        script = folder / "screen.py"
        body = SCRIPT.format(pid=str(folder / "pid"), run=str(run))
        script.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{body}")
        with WAYS[way](script) as take_away:
            wait_for(lambda: step_of(out) > 0, 300)
            time.sleep(rng.uniform(0, 2.0))
            tally.steps_at_loss.append(step_of(out))
            take_away()
            tally.attached.append(attach_seconds(out))
            is_finished = wait_for(
                lambda: any(isinstance(event, Finished) for event in read_events(out / "events.jsonl")), 90
            )
            tally.finished += is_finished
            pid = int((folder / "pid").read_text())
        tally.ended += wait_for(lambda: not is_alive(pid), 20)


def attach_seconds(folder: Path) -> float:
    """Return how long it takes until `attach` shows the run's own step count on a new terminal."""
    process = PtyProcess(ATTACH.format(folder=str(folder)), size=(120, 40))
    try:
        return process.read_until(f"/{STEPS}".encode(), seconds=30)
    finally:
        process.close()


def step_of(folder: Path) -> int:
    path = folder / "events.jsonl"
    return (
        max((event.step for event in read_events(path) if isinstance(event, Step)), default=0) if path.exists() else 0
    )


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(is_true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_true():
            return True
        time.sleep(0.1)
    return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parsed = parser.parse_args()
    rng = random.Random(int(time.time()))
    for way in parsed.ways:
        if way in NEEDS and shutil.which(NEEDS[way]) is None:
            print(f"{way:<8} left out: {NEEDS[way]} is not installed")
            continue
        tally = Tally()
        for _ in range(parsed.trials):
            trial(way, rng, tally)
        attached = sorted(tally.attached)
        print(
            f"{way:<8} {parsed.trials} trials, at steps {min(tally.steps_at_loss)} to {max(tally.steps_at_loss)} of "
            f"{STEPS}: {tally.finished} trained to the end, {tally.ended} processes ended by themselves, "
            f"attach in {attached[len(attached) // 2]:.1f} s (worst {attached[-1]:.1f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
