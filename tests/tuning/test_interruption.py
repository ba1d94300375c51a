"""What a training is worth after Ctrl-C, a kill, or a loss that is no number."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from deltahub.checkpoint import Base
from deltahub.cli import main
from deltahub.delta import Delta
from deltahub.errors import DataError
from deltahub.mask import Mask
from deltahub.tuning import data
from deltahub.tuning.data import Dataset
from deltahub.tuning.settings import Settings
from deltahub.tuning.state import last_checkpoint
from deltahub.tuning.train import Trained, train
from tests.tuning.conftest import CREATED, FAST, word_task

TWO = replace(FAST, epochs=2)
STEPS = 6
"""In an epoch of the 48 rows."""


class Keys:
    """Presses Ctrl-C ``times`` times after a step; every other step only counts."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step = step
        self.times = times
        self.steps: list[int] = []

    def __call__(self, done: int, _total: int) -> None:
        self.steps.append(done)
        if done == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)  # to this thread: two to the process may come to one


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C reaches the tests also where they were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


Run = Callable[..., Trained]


@pytest.fixture(scope="module")
def run(text_base: Base, mask: Mask, rows: Dataset, validation: Dataset) -> Run:
    return lambda **more: train(
        text_base, rows, validation, task="words", mask=mask, created=CREATED,
        **{"settings": TWO, "say": lambda line: None, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(run: Run) -> Delta:
    return run().delta


@pytest.mark.parametrize("step", [2, STEPS, STEPS + 3, 2 * STEPS])
def test_ctrl_c_in_any_step_keeps_that_step_and_resuming_ends_with_the_same_bits(
    run: Run, unbroken: Delta, tmp_path: Path, step: int
) -> None:
    """With dropout, so that the random generators must go on where they were."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(state=tmp_path, progress=Keys(step))
    assert signal.getsignal(signal.SIGINT) is before
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step}"
    rest = Keys(0)
    resumed = run(state=tmp_path, resume=True, progress=rest)
    assert rest.steps == list(range(step + 1, 2 * STEPS + 1))
    assert resumed.delta.digest == unbroken.digest


def test_a_second_ctrl_c_does_not_wait_for_the_step(run: Run, tmp_path: Path) -> None:
    keys = Keys(STEPS + 2, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(state=tmp_path, progress=keys)
    assert keys.steps[-1] == STEPS + 2
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{STEPS}"


def test_a_run_interrupted_twice_still_ends_with_the_same_bits(run: Run, unbroken: Delta, tmp_path: Path) -> None:
    for step in (4, STEPS + 4):
        with pytest.raises(KeyboardInterrupt):
            run(state=tmp_path, resume=True, progress=Keys(step))
    assert run(state=tmp_path, resume=True).delta.digest == unbroken.digest


@contextmanager
def spoiled(step: int) -> Iterator[None]:
    """Makes the gradients of one optimizer step NaN, so that the next loss is."""
    steps: list[None] = []

    def spoil(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        steps.append(None)
        if len(steps) == step:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.fill_(torch.nan)

    handle = register_optimizer_step_pre_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def test_a_divergence_after_an_epoch_keeps_the_best_one_and_says_so(run: Run, tmp_path: Path) -> None:
    lines: list[str] = []
    with spoiled(STEPS + 3):
        trained = run(say=lines.append, state=tmp_path)
    assert trained.diverged == STEPS + 4
    assert trained.metrics["best_epoch"] == 1
    assert (
        f"the training diverged in step {STEPS + 4}: the best epoch before is kept; lower the learning rates" in lines
    )
    assert lines[-1].startswith("words: kept epoch 1 of 2")
    assert trained.metrics["validation_accuracy"] == trained.history[0]["accuracy"]
    for raw in (trained.delta.values, *trained.delta.head.values()):
        assert raw is not None
        assert torch.as_tensor(raw).isfinite().all()


@pytest.mark.parametrize("step", [STEPS - 3, STEPS])
def test_a_divergence_within_the_first_epoch_or_at_its_end_is_an_error(run: Run, step: int) -> None:
    """After the last step it is the scores that show it."""
    with spoiled(step), pytest.raises(DataError, match=rf"diverged in step {min(step + 1, STEPS)}: expected a finite"):
        run()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows to train on in a file, which the command splits."""
    rows = word_task(48, seed=1)
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(rows.texts, rows.labels, strict=True)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def of_command(text_base: Base, written: Path) -> Delta:
    """What the command makes when nothing ends it."""
    settings = Settings(epochs=3, max_length=16, batch_size=8, lr=1e-2)
    return train(
        text_base, *data.load(written), task="words", settings=settings, say=lambda line: None
    ).delta  # fmt: skip


@pytest.fixture
def command(text_base: Base, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    return [
        "train", str(text_base.path), "--data", str(written), "--epochs", "3", "--max-length", "16",
        "--batch-size", "8", "--lr", "1e-2", "-o", str(tmp_path / "words.delta"),
    ]  # fmt: skip


def resumes(command: list[str], wanted: Delta) -> None:
    output = Path(command[-1])
    assert not output.exists()
    assert main(command) == 2  # an earlier run is not overwritten
    assert main([*command, "--resume"]) == 0
    found = Delta.load(output)
    assert found.tensors == wanted.tensors
    assert found.manifest.metrics == wanted.manifest.metrics
    assert not output.with_name("words.delta.state").exists()


def test_a_command_that_was_ended_by_ctrl_c_is_resumed(
    command: list[str], of_command: Delta, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write = sys.stderr.write

    def interrupting(text: str) -> int:
        if text.startswith("epoch 2/3"):
            signal.raise_signal(signal.SIGINT)
        return write(text)

    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "write", interrupting)
        assert main(command) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 3/3" not in err
    assert err.splitlines()[-2:] == [
        f"words: training was interrupted; what was done is kept in {tmp_path / 'words.delta.state'}: "
        "resume from there",
        "deltahub: interrupted; nothing was half-written",
    ]
    resumes(command, of_command)


KILLED = f"""
import os, signal, sys, torch
from deltahub.cli import main
torch.set_num_threads({torch.get_num_threads()})
write = sys.stderr.write
def deadly(text):
    if text.startswith("epoch 2/3"):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(text)
sys.stderr.write = deadly
main()
"""


def test_a_command_that_was_killed_is_resumed(command: list[str], of_command: Delta) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == ""
    assert "epoch 1/3" in done.stderr
    resumes(command, of_command)
