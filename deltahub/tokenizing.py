"""Texts to tokens, cut to a length: by many threads at a time, with one tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltahub.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]
"""A tokenizer's columns (``input_ids``, ``attention_mask``, ...) for one text, without padding."""
Span = tuple[int, int]

_SETTLING = threading.Lock()
_SLOW = threading.Lock()


@dataclass(frozen=True)
class Tokenized:
    """The tokens of one text or pair.

    Attributes:
        tokens: cut to the length that was asked for.
        whole: how many there were before the cut.
        spans: where each token stands in the text; None where nobody asked.
        words: the tokenizer's number of each token's word, None for special tokens; None where nobody asked.
    """

    tokens: Example
    whole: int
    spans: list[Span] | None = None
    words: list[int | None] | None = None


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int,
    *,
    places: bool = False,
) -> list[Tokenized]:
    """Tokens of each text, or pair, cut to ``max_length``: the longer of a pair first, on the tokenizer's side.

    A fast tokenizer's own cut is not used. It keeps the length in the tokenizer, where other threads' calls would
    change it; and it makes something of every combination of what is cut off a pair, which takes minutes for texts of
    10,000 tokens.

    Args:
        places: give ``spans`` and ``words`` too, which slow tokenizers do not know.

    Raises:
        UsageError: a text that has no token.
    """
    if not texts:
        return []
    rows = _fast(tokenizer, texts, pairs, max_length, places) if tokenizer.is_fast else _slow(
        tokenizer, texts, pairs, max_length
    )  # fmt: skip
    for number, row in enumerate(rows, start=1):
        if not row.tokens["input_ids"]:  # a tokenizer without special tokens, and an empty text
            raise UsageError(f"text {number} of {len(texts)}", expected="at least one token", got="none")
    return rows


def _fast(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int, places: bool
) -> list[Tokenized]:
    _settle(tokenizer)
    found = tokenizer(
        texts, pairs, truncation=False, padding=False, verbose=False, return_offsets_mapping=places
    )  # verbose would warn of texts longer than the model takes
    columns = _columns(found)
    rows = []
    for number, ids in enumerate(columns["input_ids"]):
        parts = [slice(None)]
        if len(ids) > max_length:
            parts = _kept(found.sequence_ids(number), max_length, tokenizer.truncation_side)
        tokens = {name: _cut(column[number], parts) for name, column in columns.items()}
        spans = _cut(found["offset_mapping"][number], parts) if places else None
        words = _cut(found.word_ids(number), parts) if places else None
        rows.append(Tokenized(tokens, len(ids), spans, words))
    return rows


def _settle(tokenizer: Any) -> None:
    """Sets the fast tokenizer to neither cut nor pad, so that no call of `_fast` changes it while another one runs."""
    backend = tokenizer.backend_tokenizer
    with _SETTLING:
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != tokenizer.split_special_tokens:
            backend.encode_special_tokens = tokenizer.split_special_tokens


def _kept(sequences: Sequence[int | None], max_length: int, side: str) -> list[slice]:
    """Which tokens stay: the special ones, and of each text as many from its start (``side`` right) or its end.

    Args:
        sequences: for each token 0 or 1, the text that it is of; None for special tokens.
    """
    counts = sequences.count(0), sequences.count(1)
    room = max(max_length - (len(sequences) - sum(counts)), 0)
    gone = []
    for text, (count, stays) in enumerate(zip(counts, _shares(*counts, room), strict=True)):
        if count > stays:
            start = sequences.index(text)
            gone.append((start + stays, start + count) if side == "right" else (start, start + count - stays))
    edges = [0, *(edge for cut in sorted(gone) for edge in cut), len(sequences)]
    return [slice(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay: as if tokens were taken off the longer one until both fit into ``room``."""
    if first + second <= room:
        return first, second
    if first > second:
        return _shares(second, first, room)[::-1]
    if 2 * first <= room:
        return first, room - first
    return room // 2, room - room // 2


def _slow(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int
) -> list[Tokenized]:
    with _SLOW:  # nobody says that tokenizers written in Python may be called by two threads
        found = _columns(tokenizer(texts, pairs, truncation=False, padding=False, verbose=False))
        cut = found
        if any(len(ids) > max_length for ids in found["input_ids"]):
            cut = _columns(tokenizer(texts, pairs, truncation=True, max_length=max_length))
    return [
        Tokenized({name: column[number] for name, column in cut.items()}, len(ids))
        for number, ids in enumerate(found["input_ids"])
    ]


def _columns(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: column for name, column in found.items() if name != "offset_mapping"}


def _cut(column: list[Any], parts: list[slice]) -> list[Any]:
    return [item for part in parts for item in column[part]]
