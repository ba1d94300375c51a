"""From a data set to batches: token ids with labels, padded, in an order that seed and epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deltahub.encoding import encode, pad, word_ids
from deltahub.errors import MismatchError
from deltahub.tuning.data import Dataset
from deltahub.tuning.metrics import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, Any]
_CHUNK = 50
"""Batches that are sorted by length together: few enough to keep the order random, enough to save padding."""


def examples(tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int) -> list[Example]:
    """One dictionary a row: token ids and so on, unpadded, with ``labels``; for embeddings both sides."""
    if rows.kind == "embeddings":
        assert rows.pairs is not None
        sides = (encode(tokenizer, texts, max_length=max_length) for texts in (rows.texts, rows.pairs))
        return [{"left": left, "right": right} for left, right in zip(*sides, strict=True)]
    encoded = encode(tokenizer, rows.texts, rows.pairs, max_length=max_length)
    labels: Sequence[Any] = rows.label_ids()
    if rows.kind == "token-classification":
        words = word_ids(tokenizer, rows.texts, max_length=max_length)
        labels = [_spread(own, where) for own, where in zip(labels, words, strict=True)]
    return [{**example, "labels": label} for example, label in zip(encoded, labels, strict=True)]


def _spread(labels: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """A label for each token: its word's where it is the first token of it, else IGNORED."""
    return [
        labels[word] if word is not None and (at == 0 or words[at - 1] != word) else IGNORED
        for at, word in enumerate(words)
    ]


@dataclass(frozen=True)
class Collator:
    """Pads examples to one batch of tensors; labels are int64 (n,), fp32 (n,) or (n, classes), or int64 (n, tokens)."""

    own: PreTrainedTokenizerBase  # a `tokenizer` would be saved into every checkpoint

    def __call__(self, batch: Sequence[Example]) -> dict[str, Any]:
        if "left" in batch[0]:
            return {side: pad(self.own, [example[side] for example in batch]) for side in ("left", "right")}
        inputs: dict[str, Any] = pad(self.own, [_without_labels(example) for example in batch])
        labels = [example["labels"] for example in batch]
        if isinstance(labels[0], list) and isinstance(labels[0][0], int):
            width = inputs["input_ids"].shape[1]
            left = self.own.padding_side == "left"
            rest = [[IGNORED] * (width - len(row)) for row in labels]
            labels = [more + row if left else row + more for row, more in zip(labels, rest, strict=True)]
        made = torch.tensor(labels)
        return {**inputs, "labels": made.float() if made.is_floating_point() else made}


def _without_labels(example: Example) -> Example:
    return {name: value for name, value in example.items() if name != "labels"}


def check_ids(examples: Sequence[Example], config: Any) -> None:
    """Raises MismatchError where the tokenizer gives a number that the model has no embedding for."""
    known = getattr(config, "vocab_size", None)
    sides = [part for example in examples for part in (example.get("left", example), example.get("right", example))]
    highest = max((max(side["input_ids"]) for side in sides), default=0)
    if isinstance(known, int) and highest >= known:
        raise MismatchError(
            "the tokenizer does not fit the base", expected=f"token numbers below {known:,}", got=highest,
            hint="put the tokenizer that the base was trained with into its folder",
        )  # fmt: skip


class LengthGrouped(torch.utils.data.Sampler[int]):
    """Every row once, in random order, rows of like length together. ``set_epoch`` chooses the order."""

    def __init__(self, rows: Sequence[Example], batch_size: int, seed: int) -> None:
        self._lengths = [len(row.get("left", row)["input_ids"]) for row in rows]
        self._batch_size = batch_size
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        step = self._batch_size * _CHUNK
        chunks = [
            sorted(order[at : at + step], key=lambda row: -self._lengths[row]) for at in range(0, len(order), step)
        ]
        size = self._batch_size
        batches = [chunk[at : at + size] for chunk in chunks for at in range(0, len(chunk), size)]
        whole = [batch for batch in batches if len(batch) == size]
        for number in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[number]
        for batch in batches:  # the short ones last, or they would shift the others
            if len(batch) < size:
                yield from batch
