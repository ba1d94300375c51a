"""The folder of a run: what it was started with, and its checkpoints, each sealed with the digests of its files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from deltahub import digest
from deltahub.errors import DataError, MismatchError, UsageError
from deltahub.files import store_errors, write_atomic

MASTERS = "model.safetensors"
_RUN = "run.json"
_SEAL = "sha256.json"
_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")


def open_state(folder: Path, run: Mapping[str, object], *, resume: bool) -> Path | None:
    """Makes ``folder`` the place of this run; returns the checkpoint to go on from, if there is one.

    Args:
        run: everything that decides the result; a run is only resumed under the very same.

    Raises:
        UsageError: the folder holds an earlier run and ``resume`` is not set, or files that are no run's.
        MismatchError: it holds another run.
        DataError: the note of its run is damaged.
        StoreError: it cannot be written to.
    """
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    note = folder / _RUN
    text = json.dumps(run, sort_keys=True)
    if note.exists():
        if not resume:
            raise UsageError(f"{folder} holds an earlier run", hint="resume it, or give another folder")
        _same_run(folder, _read_note(note), json.loads(text))
    elif empty:
        write_atomic(note, [text.encode()])
    else:
        raise UsageError(f"{folder} is not empty and holds no run", hint="give a new or empty folder")
    return last_checkpoint(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint whose best epoch so far, if any, is whole too; None where a run starts anew."""
    whole = {step: path for step, path in _checkpoints(folder) if _is_whole(path)}
    for step in sorted(whole, reverse=True):
        state = json.loads((whole[step] / _STATE).read_text(encoding="utf-8"))
        if state["best_global_step"] in (None, *whole):
            return whole[step]
    return None


def keep_only(folder: Path, steps: set[int]) -> None:
    """Removes every checkpoint but those of ``steps``."""
    for step, path in _checkpoints(folder):
        if step not in steps:
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, whole or not."""
    found = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match[1]), path) for match, path in found if match]


def seal(checkpoint: Path) -> None:
    """Notes the digest of every file, as the last one: what is not as noted was cut short or damaged."""
    digests = {path.name: digest.of_file(path) for path in checkpoint.iterdir() if path.is_file()}
    digests.pop(_SEAL, None)
    write_atomic(checkpoint / _SEAL, [json.dumps(digests, sort_keys=True).encode()])


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / _SEAL).read_bytes())
        return {MASTERS, _STATE} <= digests.keys() and all(
            digest.of_file(checkpoint / name) == expected for name, expected in digests.items()
        )
    except (OSError, ValueError, AttributeError, RecursionError):  # no object, no file, no JSON: not what was written
        return False


def _read_note(note: Path) -> dict[str, object]:
    try:
        run = json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict):
        raise DataError(f"{note} is damaged", expected="the settings of a run", hint="give another folder")
    return run


def _same_run(folder: Path, earlier: dict[str, object], now: dict[str, object]) -> None:
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise MismatchError(
                f"the run in {folder} has another {name}", expected=_short(earlier.get(name)),
                got=_short(now.get(name)), hint="resume with what it was started with, or give another folder",
            )  # fmt: skip


def _short(value: object) -> str:
    return str(value)[:80]
