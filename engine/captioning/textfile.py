"""A caption file's text, and how its bytes spell it, so that an edit keeps encoding, mark and line ends. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, safe_text

MAX_TEXT_BYTES = 16 << 20  # A caption of megabytes is a mistake; one larger than this is not even looked at.
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """Text with plain line ends and none behind its last line, and how the file writes it."""

    text: str
    encoding: str = "utf-8"
    mark: bytes = b""
    """The byte-order mark in front."""
    newline: str = "\n"
    ending: str = ""
    """Line ends behind the text, as they are in the file."""

    def with_text(self, text: str) -> bytes:
        """Return the bytes of a file of this kind that holds another text."""
        body = text.replace("\r\n", "\n").replace("\n", self.newline) + self.ending
        return self.mark + body.encode(self.encoding)


NEW_FILE = TextFile(text="", ending="\n")


def decode(raw: bytes, name: str) -> TextFile:
    """Take a caption file apart.

    Raises:
        EngineError: It is neither UTF-8 nor marked as UTF-16, or holds NUL; the message names the byte.
    """
    mark, encoding = next(((mark, kind) for mark, kind in _MARKS if raw.startswith(mark)), (b"", "utf-8"))
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = len(mark) + error.start
        raise EngineError(
            f"{safe_text(name)}: byte {place} (0x{raw[place]:02x}) is not {encoding.upper()}; it is left as it is:"
            " save it as UTF-8 text, or replace it whole"
        ) from error
    if "\0" in text:
        raise EngineError(f"{safe_text(name)}: holds NUL characters, so it is no caption; it is left as it is")
    body = text.rstrip("\r\n")
    newline = "\r\n" if "\r\n" in text else "\n"
    plain = body.replace("\r\n", "\n").replace("\r", "\n")
    return TextFile(text=plain, encoding=encoding, mark=mark, newline=newline, ending=text[len(body) :])


def read_bytes(path: Path) -> bytes | None:
    """Return a file's bytes, or None where there is no such file.

    Raises:
        EngineError: It can't be read, is no regular file, or is far too large for a caption.
    """
    shown = safe_text(str(path))
    try:
        if not path.exists() and not path.is_symlink():
            return None
        if not path.is_file():
            raise EngineError(f"{shown}: not a regular file, so no caption is read from it or written to it")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise EngineError(f"{shown}: larger than {MAX_TEXT_BYTES >> 20} MiB, so it is no caption")
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{shown}: can't be read ({error.strerror or error})") from error
