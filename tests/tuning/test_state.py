"""The state folder of a training: what it keeps, what a damaged or foreign one is, and that a run goes on from it."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deltahub.checkpoint import Base
from deltahub.errors import DataError, MismatchError, StoreError, UsageError
from deltahub.mask import Mask
from deltahub.tuning.data import Dataset
from deltahub.tuning.state import last_checkpoint, open_state
from deltahub.tuning.train import Trained, train
from tests.tuning.conftest import CREATED, FAST


class Interrupted:
    """Listens to a run and presses Ctrl-C when a line starts with ``at``."""

    def __init__(self, at: str = "never") -> None:
        self.at = at
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self.at):
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_one_without_a_break(
    trained: Trained, text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path
) -> None:
    stop = Interrupted(at="epoch 2")
    with pytest.raises(KeyboardInterrupt):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, say=stop)
    assert stop.lines[-1].endswith(f"was interrupted; what was done is kept in {tmp_path}: resume from there")
    with pytest.raises(UsageError, match="holds an earlier run; resume it"):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path)
    listen = Interrupted()
    resumed = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, resume=True,
        created=CREATED, say=listen,
    )  # fmt: skip
    assert [line[:9] for line in listen.lines if line.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    assert resumed.delta.digest == trained.delta.digest
    finished = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, resume=True,
        created=CREATED,
    )  # fmt: skip
    assert finished.delta.digest == trained.delta.digest
    assert finished.history == []


def test_a_run_is_resumed_only_as_it_was_started(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path,
              say=Interrupted(at="epoch 1"))  # fmt: skip
    other = replace(FAST, epochs=4)
    with pytest.raises(MismatchError, match="has another epochs: expected 3, found 4"):
        train(text_base, rows, validation, task="words", mask=mask, settings=other, state=tmp_path, resume=True)
    with pytest.raises(MismatchError, match="has another data"):
        train(text_base, rows.take(range(40)), validation, task="words", mask=mask, settings=FAST, state=tmp_path,
              resume=True)  # fmt: skip


def checkpoints(state: Path) -> list[Path]:
    return sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
             "sha256.json"],
)  # fmt: skip
@pytest.mark.usefixtures("trained")
def test_a_damaged_checkpoint_is_passed_over(state: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = shutil.copytree(state, tmp_path / "state")
    best, last = checkpoints(folder)
    assert last_checkpoint(folder) == last
    for damaged, wanted in ((last, best), (best, None)):
        (damaged / file).write_bytes(content) if content is not None else (damaged / file).unlink()
        assert last_checkpoint(folder) == wanted


def test_a_run_whose_best_epoch_is_damaged_starts_anew_and_ends_the_same(
    trained: Trained, text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, state: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(state, tmp_path / "state")
    (checkpoints(folder)[0] / "model.safetensors").write_bytes(b"")
    foreign = folder / "checkpoint-9-backup"
    foreign.mkdir()
    resumed = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=folder, resume=True, created=CREATED
    )
    assert resumed.delta.digest == trained.delta.digest
    assert len(resumed.history) == FAST.epochs
    assert foreign.exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else_is_left_alone(
    text_base: Base, rows: Dataset, validation: Dataset, tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(UsageError, match="is not empty and holds no run; give a new or empty folder"):
        train(text_base, rows, validation, task="words", method="head", state=tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-500"]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_note_of_the_run_is_refused(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "run.json").write_bytes(note)
    with pytest.raises(DataError, match=r"run\.json is damaged: expected the settings of a run; give another folder"):
        open_state(tmp_path, {}, resume=True)


@pytest.mark.parametrize("room", [8_000, 20_000])
def test_a_full_disk_is_one_line_that_names_the_folder(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path, room: int
) -> None:
    """No file may grow beyond ``room`` bytes: first the masters do not fit, then the optimizer's state."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(StoreError) as error:
            train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path,
                  say=lambda line: None)  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith(f"cannot write a checkpoint into {tmp_path} (")
    assert "\n" not in str(error.value)
    assert last_checkpoint(tmp_path) is None
