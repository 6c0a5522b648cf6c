"""Captions to CLIP token ids: the tokenizer, the 75-token chunks, the weighted-caption grammar, token counts.

Torch-free, so that the wizard can count what a caption loses before torch is loaded.

The ids are those of the original CLIP tokenizer with ftfy, which the SD 1.x and 2.x text encoders were trained with.
Captions repeat their words, so the ids of each are kept: 100,000 captions of 20 words are counted in about a second,
several times as fast as with the batch call of `tokenizers`, which is left with the byte-pair merging.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as BytePairTokenizer

from engine.errors import EngineError, safe_text

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CHUNK_TOKENS = 75  # What one pass of the text encoder takes, without its begin and end.
TOKENIZER_FOLDER = Path(__file__).parent / "resources" / "clip_tokenizer"

Chunks = list[list[int]]

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
_SPLIT_WORDS = pre_tokenizers.Split(
    Regex(_WORDS + r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
)
_KEPT_WORDS = 1 << 16


class ClipTokenizer:
    """The CLIP tokenizer of SD 1.x or 2.x; `begin`, `end` and `pad` are the ids of its marks."""

    __slots__ = ("_byte_pairs", "_specials", "_split_specials", "_written_ids", "begin", "end", "pad")

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], *, pad_token: str) -> None:
        byte_pairs = BytePairTokenizer(models.BPE(vocab, list(merges), end_of_word_suffix="</w>", unk_token=END))
        byte_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._byte_pairs = byte_pairs
        self.begin, self.end, self.pad = vocab[BEGIN], vocab[END], vocab[pad_token]
        # The pad token is cut out of the text too: with SD 2.x every "!" becomes id 0, as the original does it.
        self._specials = {BEGIN: self.begin, END: self.end, pad_token: self.pad}
        self._split_specials = re.compile("(" + "|".join(map(re.escape, self._specials)) + ")")
        self._written_ids = lru_cache(maxsize=_KEPT_WORDS)(self._encode_written)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, all of them, without begin and end."""
        ids: list[int] = []
        for piece in self._split_specials.split(text):
            if piece in self._specials:
                ids.append(self._specials[piece])
            else:
                for written in _clean(piece).split():
                    ids.extend(self._written_ids(written))
        return ids

    def _encode_written(self, written: str) -> tuple[int, ...]:
        """Return the ids of what stands between two blanks, such as `cat's,`, which is several words to CLIP."""
        ids: list[int] = []
        for word, _ in _SPLIT_WORDS.pre_tokenize_str(written):
            if word in {BEGIN, END}:  # Written in capitals, and made lower case by the cleaning.
                ids.append(self._specials[word])
            else:
                ids.extend(self._byte_pairs.encode(word, add_special_tokens=False).ids)
        return tuple(ids)


def _clean(text: str) -> str:
    """Repair and lower the case; ftfy (38 us a caption) has nothing to do for printable ASCII without "&"."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = ftfy.fix_text(text)
    return text.lower()


def load_tokenizer(*, v2: bool, folder: Path | None = None) -> ClipTokenizer:
    """Load the CLIP tokenizer from the shipped vocabulary, or from a model's own `tokenizer` folder.

    Raises:
        EngineError: The folder holds no CLIP vocabulary.
    """
    folder = folder or TOKENIZER_FOLDER
    try:
        vocab, merges = _read_vocabulary(folder)
        return ClipTokenizer(vocab, merges, pad_token="!" if v2 else END)
    except OSError as error:
        raise EngineError(
            f"{safe_text(str(folder))}: the tokenizer can't be read ({error.strerror or error}); "
            "it needs vocab.json and merges.txt, or tokenizer.json"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{safe_text(str(folder))}: not the tokenizer of a CLIP text encoder ({safe_text(str(error))}); "
            "copy vocab.json and merges.txt anew from where the model came from"
        ) from error


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if not (folder / "vocab.json").exists() and (folder / "tokenizer.json").exists():
        model: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        return model["vocab"], [(left, right) for left, right in pairs]
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    pairs = (line.split() for line in lines if line.strip() and not line.startswith("#version"))
    return vocab, [(left, right) for left, right in pairs]


def capacity(max_token_length: int | None) -> int:
    """Return how many tokens of a caption count, without begin and end: 75, 150 or 225."""
    tokens = max_token_length or CHUNK_TOKENS
    assert tokens in {75, 150, 225}, tokens
    return tokens


def count_tokens(captions: Iterable[str], tokenizer: ClipTokenizer, *, weighted: bool = False) -> list[int]:
    """Return the tokens of each caption, without begin and end and before any truncation.

    With `weighted` the marks of the weighting grammar don't count.
    """
    if weighted:
        return [sum(len(tokenizer.ids(text)) for text, _ in parse_weights(caption)) for caption in captions]
    return [len(tokenizer.ids(caption)) for caption in captions]


def truncated_tokens(tokens: int, max_token_length: int | None) -> int:
    """Return how many of a caption's tokens are cut off."""
    return max(0, tokens - capacity(max_token_length))


def token_ids(caption: str, tokenizer: ClipTokenizer, max_token_length: int | None = None) -> Chunks:
    """Return the caption as 1, 2 or 3 chunks of 77 ids: begin, 75 tokens, end; what is beyond is cut off.

    Args:
        caption: Any text; "" is the unconditional one.
        tokenizer: From `load_tokenizer`.
        max_token_length: None or 75, 150, 225.
    """
    return _chunks(tokenizer.ids(caption), tokenizer, capacity(max_token_length))


def weighted_token_ids(
    caption: str, tokenizer: ClipTokenizer, max_token_length: int | None = None
) -> tuple[Chunks, list[list[float]]]:
    """Return the chunks of 77 ids of a weighted caption and, in the same shape, the weight of each position.

    Each piece between marks is tokenised alone, so a word never joins with its neighbour in other brackets.
    """
    tokens = capacity(max_token_length)
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parse_weights(caption):
        piece = tokenizer.ids(text)
        ids += piece
        weights += [weight] * len(piece)
    weights = [*weights[:tokens], *[1.0] * (tokens - len(weights))]
    rows = [[1.0, *weights[start : start + CHUNK_TOKENS], 1.0] for start in range(0, tokens, CHUNK_TOKENS)]
    return _chunks(ids, tokenizer, tokens), rows


def _chunks(ids: list[int], tokenizer: ClipTokenizer, tokens: int) -> Chunks:
    row = [tokenizer.begin, *ids[:tokens], tokenizer.end]
    row += [tokenizer.pad] * (tokens + 2 - len(row))
    if tokens == CHUNK_TOKENS:
        return [row]
    starts = range(1, tokens + 1, CHUNK_TOKENS)
    chunks = [[row[0], *row[start : start + CHUNK_TOKENS], row[-1]] for start in starts]
    if tokenizer.pad != tokenizer.end:
        for chunk in chunks:
            _mark_end(chunk, tokenizer)
    return chunks


def _mark_end(chunk: list[int], tokenizer: ClipTokenizer) -> None:
    """Give a chunk its end where the pad token is another one (SD 2.x): after a full chunk, at the head of an empty."""
    if chunk[-2] not in {tokenizer.end, tokenizer.pad}:
        chunk[-1] = tokenizer.end
    if chunk[1] == tokenizer.pad:
        chunk[1] = tokenizer.end


_ROUND, _SQUARE = 1.1, 1 / 1.1
_MARKS = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:([+-]?[.\d]+)\)|[)\]]|[^\\()\[\]:]+|:")


def parse_weights(caption: str) -> list[tuple[str, float]]:
    r"""Split a caption of AUTOMATIC1111's grammar into texts and weights.

    `(x)` weighs 1.1, `[x]` 1 / 1.1, `(x:1.3)` 1.3; brackets multiply where they nest, an unclosed one runs to the end,
    and `\(` is the character itself. Neighbours of equal weight are one text.
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(start: int, factor: float) -> None:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for mark in _MARKS.finditer(caption):
        text = mark[0]
        number = _number(mark[1])
        if text in opened:
            opened[text].append(len(pieces))
        elif number is not None and opened["("]:
            close(opened["("].pop(), number)
        elif text == ")" and opened["("]:
            close(opened["("].pop(), _ROUND)
        elif text == "]" and opened["["]:
            close(opened["["].pop(), _SQUARE)
        else:
            pieces.append((text.removeprefix("\\"), 1.0))
    for start in opened["("]:
        close(start, _ROUND)
    for start in opened["["]:
        close(start, _SQUARE)
    return _merge_equal(pieces)


def _number(digits: str | None) -> float | None:
    try:
        number = float(digits) if digits else math.nan
    except ValueError:  # "1.2.3" is text.
        return None
    return number if math.isfinite(number) else None


def _merge_equal(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged
