"""Names: which ones tasks and tags may have (safe as file name, URL part and model id everywhere), and globs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from deltahub.errors import UsageError

TEXT_KINDS = (
    "text-classification",
    "multi-label-classification",
    "regression",
    "token-classification",
    "embeddings",
)
"""Kinds of task that are trained here and have answers here."""

KINDS = (*TEXT_KINDS, "text-generation", "image-classification", "other")
"""What a task does: decides its model class and how its answers look."""

LINEAR_HEAD = "LinearHead"
"""The architecture of a task with one linear layer on pooled states: the only one that is no class of transformers."""

_TASK = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_TAG = re.compile(r"[a-z](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DEVICES = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}


def check_task(name: str) -> str:
    """Returns ``name``; raises UsageError unless it is a task name."""
    if not _TASK.fullmatch(name) or name.partition(".")[0] in _DEVICES or ".." in name:
        raise UsageError(
            f"task name {_shown(name)}",
            expected="1 to 100 of a-z 0-9 . _ -, a letter or digit first and last",
            hint=_suggest(name),
        )
    return name


def check_tag(name: str) -> str:
    """Returns ``name``; raises UsageError unless it is a tag name (a letter first, so that no tag is a number)."""
    if not _TAG.fullmatch(name) or ".." in name:
        raise UsageError(f"tag {_shown(name)}", expected="1 to 64 of a-z 0-9 . _ -, letter first", hint=_suggest(name))
    return name


def parse_reference(text: str) -> tuple[str, int | str | None]:
    """``"sst2"`` to ``("sst2", None)``, ``"sst2@3"`` to ``("sst2", 3)``, ``"sst2:prod"`` to ``("sst2", "prod")``.

    Raises:
        UsageError: anything else.
    """
    task, at, number = text.partition("@")
    if at:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise UsageError(f"version {_shown(text)}", expected="TASK@N with N = 1, 2, ...")
        return check_task(task), int(number)
    task, colon, tag = text.partition(":")
    return (check_task(task), check_tag(tag)) if colon else (check_task(task), None)


def task_of(reference: str) -> str:
    """The task part of a reference, whether or not it is one that there can be."""
    return reference.partition("@")[0].partition(":")[0]


def names_like(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that match a shell glob, case-sensitively."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 60 else name[:57] + "...")


def _suggest(name: str) -> str | None:
    better = re.sub(r"[^a-z0-9._-]+|\.{2,}", "-", name.lower()).strip("-._")[:64]
    return f"try {better!r}" if better and better not in _DEVICES and better != name else None
