"""What one cell of a row may hold; ``place`` is the file or data and the line or row, for the message."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real

from deltahub.errors import DataError

_LABEL = "a string of 1 to 1000 characters or a whole number"


def text(place: str, column: str, found: object) -> str:
    """A text that is not blank."""
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{place}: {column!r}", expected="a text", got=shown(found))
    return _no_surrogates(place, column, found)


def words(place: str, column: str, found: object) -> tuple[str, ...]:
    """A list of words, none of them blank."""
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"{place}: {column!r}", expected="a list of words", got=shown(found))
    for number, word in enumerate(found, start=1):
        if not isinstance(word, str) or not word.strip():
            raise DataError(f"{place}: word {number} of {column!r}", expected="a text", got=shown(word))
    return tuple(_no_surrogates(place, column, word) for word in found)


def score(place: str, column: str, found: object, *, flat: bool) -> float:
    """A finite number; where all cells are strings (``flat``), one that is written as such."""
    written = flat and isinstance(found, str) and "_" not in found
    number = math.nan
    if written or (isinstance(found, Real) and not isinstance(found, bool)):
        with suppress(ValueError, OverflowError):
            number = float(found)  # type: ignore[arg-type]  # a string or a number
    if not math.isfinite(number):
        raise DataError(f"{place}: {column!r}", expected="a finite number", got=shown(found))
    return number


@dataclass
class ClassLabels:
    """Checks the labels of one column, which are all strings or all whole numbers.

    Attributes:
        column: its name.
        allowed: the only labels allowed; empty allows all.
        whole: whether the labels are whole numbers; None before the first one.
    """

    column: str
    allowed: Collection[str] = ()
    whole: bool | None = None

    def one(self, place: str, found: object) -> str:
        """One label as a string."""
        whole = isinstance(found, Integral) and not isinstance(found, bool)
        label = str(found) if whole else found
        if not isinstance(label, str) or not label.strip() or len(label) > 1000:
            raise DataError(f"{place}: {self.column!r}", expected=_LABEL, got=shown(found))
        if self.whole not in (None, whole):
            expected = "a whole number" if self.whole else "a string"
            raise DataError(f"{place}: {self.column!r}", expected=f"{expected} as in rows before", got=shown(found))
        self.whole = whole
        _no_surrogates(place, self.column, label)
        if self.allowed and label not in self.allowed:
            names = sorted(self.allowed)
            raise DataError(
                f"{place}: label {shown(label)} does not occur in the training data",
                expected=f"one of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
        return label

    def several(self, place: str, found: object, *, flat: bool) -> tuple[str, ...]:
        """A sorted set of labels, from a list, or where all cells are strings (``flat``) from ``a|b``."""
        if flat and isinstance(found, str):
            found = [part.strip() for part in found.split("|")] if found.strip() else []
        return tuple(sorted(set(self._listed(place, found, "a list of labels"))))

    def per_word(self, place: str, found: object, count: int) -> tuple[str, ...]:
        """One label for each of ``count`` words."""
        labels = self._listed(place, found, "a list of one label per word")
        if len(labels) != count:
            raise DataError(
                f"{place}: {self.column!r}", expected=f"{count} labels, one per word", got=f"{len(labels)} labels"
            )
        return tuple(labels)

    def _listed(self, place: str, found: object, expected: str) -> list[str]:
        if not isinstance(found, list | tuple):
            raise DataError(f"{place}: {self.column!r}", expected=expected, got=shown(found))
        return [self.one(place, label) for label in found]


def shown(found: object) -> str:
    """In ASCII and 40 characters at most."""
    text = ascii(found)
    return text if len(text) <= 40 else text[:37] + "..."


def _no_surrogates(place: str, column: str, found: str) -> str:
    try:
        found.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: {column!r}", expected="valid Unicode", got="half a surrogate pair") from None
    return found
