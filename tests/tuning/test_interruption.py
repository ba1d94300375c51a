"""What a training is worth after Ctrl-C, a kill, or a loss that is no number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from tests.tuning.conftest import word_task

FAST = Settings(epochs=2, lr=3e-2, head_lr=1e-1, batch_size=8, max_length=16, seed=2)
STEPS = 20
"""In an epoch of the 160 rows."""


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


@pytest.fixture(scope="module")
def mask(text_base: Base) -> Mask:
    return Mask.build(text_base, density=0.1)


Run = Callable[..., Trained]


@pytest.fixture
def run(text_base: Base, mask: Mask, rows: Dataset, validation: Dataset) -> Run:
    return lambda **more: train(
        text_base, rows, validation, task="words", mask=mask, created="2026-01-02T03:04:05Z",
        **{"settings": FAST, "say": lambda line: None, **more},
    )  # fmt: skip


@pytest.mark.parametrize("step", [7, STEPS, STEPS + 13, 2 * STEPS])
def test_ctrl_c_in_any_step_keeps_that_step_and_resuming_ends_with_the_same_bits(
    run: Run, tmp_path: Path, step: int
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
    assert resumed.delta.digest == run().delta.digest


def test_a_second_ctrl_c_does_not_wait_for_the_step(run: Run, tmp_path: Path) -> None:
    keys = Keys(STEPS + 7, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(state=tmp_path, progress=keys)
    assert keys.steps[-1] == STEPS + 7
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{STEPS}"


def test_a_run_interrupted_twice_still_ends_with_the_same_bits(run: Run, tmp_path: Path) -> None:
    for step in (5, STEPS + 5):
        with pytest.raises(KeyboardInterrupt):
            run(state=tmp_path, resume=True, progress=Keys(step))
    assert run(state=tmp_path, resume=True).delta.digest == run().delta.digest


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


def command(folder: Path, base: Base, *more: str) -> list[str]:
    return [
        "train", str(base.path), "--data", str(folder / "rows.jsonl"), "--epochs", "6", "--max-length", "16",
        "--batch-size", "8", "--lr", "1e-2", "-o", str(folder / "words.delta"), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_was_ended_by_a_signal_is_resumed(
    text_base: Base, tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = word_task(240, seed=1)
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(rows.texts, rows.labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    said = []
    with subprocess.Popen(
        [sys.executable, "-c", f"import torch; torch.set_num_threads({torch.get_num_threads()}); import sys; "
         "from deltahub.cli import main; sys.exit(main())", *command(tmp_path, text_base)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert child.stdout is not None
        for line in child.stderr:
            said.append(line)
            if line.startswith("epoch 2/6"):
                child.send_signal(how)
        assert child.stdout.read() == ""
    assert child.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert not any(line.startswith(("epoch 6/6", "Traceback")) for line in said)
    if how == signal.SIGINT:
        state = tmp_path / "words.delta.state"
        assert said[-2:] == [
            f"words: training was interrupted; what was done is kept in {state}: resume from there\n",
            "deltahub: interrupted; nothing was half-written\n",
        ]
    assert not (tmp_path / "words.delta").exists()
    assert main(command(tmp_path, text_base)) == 2  # an earlier run is not overwritten
    assert main(command(tmp_path, text_base, "--resume")) == 0
    unbroken = train(
        text_base, *data.load(tmp_path / "rows.jsonl"), task="words",
        settings=Settings(epochs=6, max_length=16, batch_size=8, lr=1e-2), say=said.append,
    )  # fmt: skip
    found = Delta.load(tmp_path / "words.delta")
    assert found.tensors == unbroken.delta.tensors
    assert found.manifest.metrics == unbroken.delta.manifest.metrics
    assert not (tmp_path / "words.delta.state").exists()
