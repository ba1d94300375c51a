"""A file of results: JSON Lines, the protocol first, then a line for each run that ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltahub.errors import DataError, MismatchError

ROUNDINGS = ("exact", "bf16", "int8", "int4")
HEAD_INT8 = "head int8"
"""What a run is tested after: the roundings of all but the head, and one of the head."""


@dataclass(frozen=True)
class Protocol:
    """What all runs of a file have in common, or their figures could not stand in one table.

    Attributes:
        base: digest of the base.
        data: digest of the files of all tasks.
        rows: most training rows of a task; None takes all.
        held_out: most rows to validate and to test on; None takes all.
        device: where they ran.
        search: whether each row's learning rate is searched for on each task; else the middle one is taken.
        first_seed: the one that it is searched with.
    """

    base: str
    data: str
    epochs: int = 3
    rows: int | None = None
    held_out: int | None = None
    batch_size: int = 16
    max_length: int = 128
    head_lr: float = 5e-3
    device: str = "cpu"
    search: bool = True
    first_seed: int = 0


@dataclass(frozen=True)
class Job:
    """One training."""

    row: str
    task: str
    seed: int
    lr: float

    def __str__(self) -> str:
        return f"{self.row} on {self.task}, seed {self.seed}, lr {self.lr:g}"


@dataclass(frozen=True)
class Results:
    """A file's content.

    Attributes:
        runs: what each finished run measured; see `measure.measure`.
        failed: why a run failed that never finished.
        tasks: number of training rows used, by task, smallest first.
    """

    protocol: Protocol
    tasks: dict[str, int]
    runs: dict[Job, dict[str, Any]]
    failed: dict[Job, str]


def open_file(path: Path, protocol: Protocol, tasks: Mapping[str, int]) -> Results:
    """The results so far, in a file of this protocol, which is made where there is none.

    Raises:
        MismatchError: the file's runs were made under another protocol.
    """
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, {"protocol": asdict(protocol), "tasks": dict(tasks)})
    _cut_torn_line(path)
    found = read(path)
    for name, ours in asdict(protocol).items():
        if (theirs := getattr(found.protocol, name)) != ours:
            raise MismatchError(
                f"{path} holds runs with another {name}", expected=str(theirs)[:16], got=str(ours)[:16],
                hint="give another --out, or the arguments that it was begun with",
            )  # fmt: skip
    return found


def read(path: Path) -> Results:
    """Raises DataError where ``path`` is no such file; a last line that was cut short counts as never written."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        protocol, tasks = Protocol(**whole[0]["protocol"]), whole[0]["tasks"]
        entries = [(Job(**entry["job"]), entry) for entry in whole[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} is no file of results ({str(error)[:80]})", hint="tools/quality/run.py makes one"
        ) from None
    runs = {job: entry for job, entry in entries if entry["status"] == "done"}
    failed = {job: entry["error"] for job, entry in entries if job not in runs}
    return Results(protocol, dict(sorted(tasks.items(), key=lambda item: item[1])), runs, failed)


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """One line, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
