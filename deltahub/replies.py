"""What a server answers, from JSON, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from deltahub.answers import Answer, from_dict
from deltahub.errors import ServerError

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Where the server's time went: tokens, queue, swap, forward pass; over several requests the sums."""

    prepare: float
    queue: float
    swap: float
    run: float


@dataclass(frozen=True)
class Reply:
    """The answers of one version of a task.

    Attributes:
        task, version, digest: who answered; the base itself has no version.
        kind, labels: of that version.
        answers: in the order of the texts.
        tokens: of each text, as the model saw it.
        replica: of the server; the last one where several answered.
    """

    task: str
    version: int | None
    digest: str
    kind: str
    labels: tuple[str, ...]
    answers: tuple[Answer, ...]
    tokens: tuple[int, ...]
    seconds: Seconds
    replica: str

    @property
    def reference(self) -> str:
        """``"sst2@3"``; the plain name of the base."""
        return self.task if self.version is None else f"{self.task}@{self.version}"


@dataclass(frozen=True)
class ServedTask:
    """A task that can be asked.

    Attributes:
        name: of the task, or of the base.
        kind, labels: of its newest version.
        pair: whether it compares two texts.
        versions: numbers, oldest first; none for the base.
        tags: names.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    pair: bool
    versions: tuple[int, ...]
    tags: tuple[str, ...]


def of(kind: type[T], value: Any) -> T:
    """``value``, which must be of ``kind`` and of no subclass, as true is no number; raises TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def read_reply(document: Any, texts: int) -> Reply:
    """The reply to so many texts.

    Raises:
        FormatError, KeyError, TypeError, ValueError, OverflowError: it is none.
    """
    kind, version, seconds = of(str, document["kind"]), document["version"], document["seconds"]
    reply = Reply(
        task=of(str, document["task"]),
        version=None if version is None else of(int, version),
        digest=of(str, document["digest"]),
        kind=kind,
        labels=tuple(of(str, label) for label in document["labels"]),
        answers=tuple(from_dict(kind, answer) for answer in document["answers"]),
        tokens=tuple(of(int, number) for number in document["tokens"]),
        seconds=Seconds(*(float(seconds[name]) for name in ("prepare", "queue", "swap", "run"))),
        replica=of(str, document["replica"]),
    )
    if not len(reply.answers) == len(reply.tokens) == texts:
        raise ValueError(f"{len(reply.answers)} answers to {texts} texts")
    return reply


def read_task(card: Any) -> ServedTask:
    """Raises as `read_reply`."""
    return ServedTask(
        name=of(str, card["name"]),
        kind=of(str, card["kind"]),
        labels=tuple(of(str, label) for label in card["labels"]),
        pair=of(bool, card["pair"]),
        versions=tuple(of(int, number) for number in card["versions"]),
        tags=tuple(of(str, tag) for tag in card["tags"]),
    )


def joined(replies: Sequence[Reply]) -> Reply:
    """One reply out of those to the parts of a list.

    Raises:
        ServerError: they are not of one version.
    """
    first, last = replies[0], replies[-1]
    if {reply.digest for reply in replies} != {first.digest}:
        raise ServerError(f"{first.reference} changed while it was asked", hint="ask again", retryable=True)
    return replace(
        last,
        answers=tuple(answer for reply in replies for answer in reply.answers),
        tokens=tuple(number for reply in replies for number in reply.tokens),
        seconds=Seconds(*(sum(parts) for parts in zip(*(astuple(reply.seconds) for reply in replies), strict=True))),
    )
