"""Sends what libraries log, warn and print into a run's log.txt, never onto the screen. Torch-free at import."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def library_log(path: Path, *, takes_output: bool) -> Iterator[None]:
    """Collect what libraries say while the block runs; with `takes_output` also what they print.

    What is printed is taken process-wide, so only a process that belongs to the run may ask for it.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(capture=True)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.ExitStack() as stack:
            if takes_output:
                printed = stack.enter_context(path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace"))
                stack.enter_context(contextlib.redirect_stdout(printed))
                stack.enter_context(contextlib.redirect_stderr(printed))
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(capture=False)
        handler.close()


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
