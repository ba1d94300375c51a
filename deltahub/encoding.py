"""Texts to what a model takes: token ids, the words that tokens belong to, and padded batches."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltahub.errors import MismatchError, TooLongError, UsageError
from deltahub.heads import longest_input, shortest_input
from deltahub.tokenizing import Example, Span, Tokenized, tokenize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from deltahub.manifest import Manifest

Text = str | Sequence[str]
"""A text, or its words in order."""

_CHUNK = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word that a model sees.

    Attributes:
        index: its number in the text, from 0; where the text was given as words, in them.
        text: as it stands there.
        start, end: its characters in the text; None where the text was given as words.
        token: number of its first token, which speaks for it.
    """

    index: int
    text: str
    start: int | None
    end: int | None
    token: int


@dataclass(frozen=True)
class Encoded:
    """One question as a model takes it; ``words`` are there for token classification only."""

    tokens: Example
    words: tuple[Word, ...] = ()


def prepare(
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest,
    texts: Sequence[Text],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    truncate: bool = True,
) -> list[Encoded]:
    """What the model of a task takes for each of ``texts``.

    Args:
        pairs: the second text of each, for tasks whose ``inputs`` say ``"pair": true``, and for no other.
        max_length: see `task_length`.
        truncate: cut what is longer than that; else it is refused.

    Raises:
        TooLongError: a text, or pair, of more tokens, without ``truncate``.
        UsageError: pairs that are missing, not wanted or not as many; words for a task of texts; a text that is no
            valid Unicode or has no token.
        MismatchError: token classification with a tokenizer that cannot tell where its tokens are from.
    """
    if isinstance(texts, str):  # its letters would be the texts
        raise UsageError("the texts", expected="a list of texts", got="one text", hint="put it into a list")
    texts = list(texts)
    wanted = manifest.inputs.get("pair") is True
    if wanted and pairs is None:
        raise UsageError(f"{manifest.task} compares pairs of texts", expected="a second text for each", got="none")
    if pairs is not None and not wanted:
        raise UsageError(f"{manifest.task} takes single texts", expected="no second text")
    if manifest.kind == "token-classification":
        rows = _tokenize_words(tokenizer, texts, max_length)
        _check_lengths(manifest, rows, max_length, truncate)
        return [_with_words(text, row) for text, row in zip(texts, rows, strict=True)]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{manifest.task} is of kind {manifest.kind}", expected="texts", got="lists of words")
    rows = _tokenize(tokenizer, texts, pairs, max_length)
    _check_lengths(manifest, rows, max_length, truncate)
    return [Encoded(row.tokens) for row in rows]


def task_length(tokenizer: PreTrainedTokenizerBase, config: Any, manifest: Manifest) -> int:
    """Tokens that a text is cut to: what the manifest's ``inputs`` say, else all that the model takes.

    Raises:
        MismatchError: they say what cannot be.
    """
    longest = longest_input(tokenizer, config)
    shortest = shortest_input(tokenizer, manifest.inputs.get("pair") is True)
    length = manifest.inputs.get("max_length", longest)
    if type(length) is not int or not shortest <= length <= longest:
        raise MismatchError(
            f"max_length of {manifest.task}", expected=f"{shortest} to {longest}, which {manifest.base.id} takes",
            got=str(length)[:20],
        )  # fmt: skip
    return length


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    pairs: Iterable[str] | None = None,
    *,
    max_length: int,
) -> list[Example]:
    """Tokens of each text, cut to ``max_length`` and not padded.

    Args:
        texts: words are joined by single blanks, so that they are tokenized as in running text.
        pairs: a second text for each; the longer of the two is cut first.

    Raises:
        UsageError: another number of pairs than texts, or a text that is no valid Unicode or has no token.
    """
    return [row.tokens for row in _tokenize(tokenizer, texts, pairs, max_length)]


def encode_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text], *, max_length: int) -> list[Encoded]:
    """As `encode`, with the words that have a token; what was cut off has none.

    Words of a plain text are what the tokenizer takes for words, never across white space.

    Raises:
        MismatchError: the tokenizer cannot tell where its tokens are from.
        UsageError: as `encode`.
    """
    texts = list(texts)
    return [
        _with_words(text, row) for text, row in zip(texts, _tokenize_words(tokenizer, texts, max_length), strict=True)
    ]


def word_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text], *, max_length: int) -> list[list[int | None]]:
    """For each token that `encode` gives, the number of its word in its text; None for special tokens.

    Raises:
        MismatchError: the tokenizer cannot tell where its tokens are from.
        UsageError: as `encode`.
    """
    texts = list(texts)
    rows = _tokenize_words(tokenizer, texts, max_length)
    return [_places(text, row)[0] for text, row in zip(texts, rows, strict=True)]


def pad(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """A batch: each column (n, t) int64 with t the longest of ``examples``, padded on the tokenizer's side."""
    import torch

    width = max(len(example["input_ids"]) for example in examples)
    fillers = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    left = tokenizer.padding_side == "left"
    batch = {}
    for name in examples[0]:
        rows = torch.full((len(examples), width), fillers.get(name, 0), dtype=torch.int64)
        for row, example in zip(rows, examples, strict=True):
            ids = torch.tensor(example[name], dtype=torch.int64)
            row[width - len(ids) if left else 0 :][: len(ids)] = ids
        batch[name] = rows
    return batch


def _joined(texts: Iterable[Text]) -> list[str]:
    joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
    for number, text in enumerate(joined, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"text {number} of {len(joined)}", expected="valid Unicode", got="half a surrogate pair",
                hint="read it as UTF-8",
            ) from None  # fmt: skip
    return joined


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text], pairs: Iterable[str] | None, max_length: int
) -> list[Tokenized]:
    firsts = _joined(texts)
    seconds = None if pairs is None else _joined(pairs)
    if seconds is not None and len(seconds) != len(firsts):
        raise UsageError("second texts", expected=len(firsts), got=len(seconds))
    return tokenize(tokenizer, firsts, seconds, max_length)


def _tokenize_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text], max_length: int) -> list[Tokenized]:
    if not tokenizer.is_fast:
        raise MismatchError(
            f"{type(tokenizer).__name__} cannot tell which words its tokens are from",
            expected="a tokenizer with a tokenizer.json", hint="token classification needs one",
        )  # fmt: skip
    return tokenize(tokenizer, _joined(texts), None, max_length, places=True)


def _check_lengths(manifest: Manifest, rows: Sequence[Tokenized], max_length: int, truncate: bool) -> None:
    if truncate:
        return
    for number, row in enumerate(rows, start=1):
        if row.whole > max_length:
            raise TooLongError(
                f"text {number} has {row.whole:,} tokens, {manifest.task} takes {max_length:,}", tokens=row.whole,
                limit=max_length, hint="cut it, or ask with truncate",
            )  # fmt: skip


def _with_words(text: Text, row: Tokenized) -> Encoded:
    return Encoded(row.tokens, tuple(_words(text, *_places(text, row))))


def _places(text: Text, row: Tokenized) -> tuple[list[int | None], list[Span]]:
    """The word of each token, and the characters of each word in the joined text."""
    assert row.spans is not None
    assert row.words is not None
    return _by_tokens(text, row.spans, row.words) if isinstance(text, str) else _by_words(text, row.spans)


def _by_tokens(text: str, offsets: list[Span], ids: list[int | None]) -> tuple[list[int | None], list[Span]]:
    """Neighbouring tokens of one tokenizer's word between the same blanks are a word."""
    chunks = [found.start() for found in _CHUNK.finditer(text)]
    words: list[int | None] = []
    spans: list[Span] = []
    last: tuple[int, int | None] | None = None
    for (begin, end), number in zip(offsets, ids, strict=True):
        start = _visible(text, begin, end)
        if start == end:
            words.append(None)
            continue
        key = (bisect_right(chunks, start), number)
        if key != last:
            spans.append((start, end))
            last = key
        spans[-1] = (min(spans[-1][0], start), max(spans[-1][1], end))
        words.append(len(spans) - 1)
    return words, spans


def _by_words(text: Sequence[str], offsets: list[Span]) -> tuple[list[int | None], list[Span]]:
    """A token belongs to the given word that its first visible character is of."""
    spans: list[Span] = []
    for word in text:
        start = spans[-1][1] + 1 if spans else 0
        spans.append((start, start + len(word)))
    joined = " ".join(text)
    starts = [start for start, _ in spans]
    found = [(_visible(joined, start, end), end) for start, end in offsets]
    return [bisect_right(starts, start) - 1 if start < end else None for start, end in found], spans


def _visible(text: str, start: int, end: int) -> int:
    """Where a token begins without the blanks that some tokenizers count as its own."""
    while start < end and text[start].isspace():
        start += 1
    return start


def _words(text: Text, ids: list[int | None], spans: list[Span]) -> Iterable[Word]:
    seen: set[int] = set()
    for token, index in enumerate(ids):
        if index is None or index in seen:
            continue
        seen.add(index)
        start, end = spans[index]
        yield (
            Word(index, text[start:end], start, end, token)
            if isinstance(text, str)
            else Word(index, text[index], None, None, token)
        )
