"""Sends what libraries log, warn and print into a run's log.txt, never onto the screen. Torch-free at import."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from engine.redact import redact


class LogStream(io.TextIOBase):
    """A run's log.txt as a stream: secrets are left out, and a disk that refuses costs the text, never the run."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        """Append a text and return its length, which libraries expect however much was written."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: a library holds on to the stream of an ended run.
            self._file.write(redact(text).encode("utf-8", "backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()
        super().close()


@contextlib.contextmanager
def library_log(path: Path, *, takes_output: bool) -> Iterator[None]:
    """Collect what libraries say while the block runs; with `takes_output` also what they print.

    What is printed is taken process-wide, so only a process that belongs to the run may ask for it.
    """
    stream = LogStream(path)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(capture=True)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.ExitStack() as stack:
            if takes_output:
                stack.enter_context(contextlib.redirect_stdout(stream))
                stack.enter_context(contextlib.redirect_stderr(stream))
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(capture=False)
        handler.close()
        stream.close()


def quieten() -> None:
    """Take away the handlers by which libraries write to the terminal; their messages go to the root logger's.

    Call after the heavy imports, in which libraries add them.
    """
    import diffusers  # noqa: F401 - adds its handler when imported, as does transformers
    import transformers  # noqa: F401

    for logger in list(logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for handler in list(logger.handlers):
            # FileHandler is a StreamHandler too, but somebody has asked for that file.
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                logger.propagate = True
