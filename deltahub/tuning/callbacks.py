"""What listens to the loop: one line for people after each epoch, and the stop after a Ctrl-C."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


class Stopper(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Interrupts between two steps, after ``save``, once ``stop`` is set. It comes after all other callbacks.

    After the last step of an epoch it waits until the epoch has been scored and saved, or it would never be scored.
    """

    def __init__(self, stop: threading.Event, save: Callable[[], None]) -> None:
        self._stop = stop
        self._save = save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        per_epoch = state.max_steps // state.num_train_epochs
        if self._stop.is_set() and state.global_step % per_epoch:
            self._save()
            raise KeyboardInterrupt

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt


@dataclass
class EpochLines(TrainerCallback):  # type: ignore[misc]
    """Says one line after each epoch.

    Attributes:
        rows: training rows of an epoch.
        epochs: how many there will be.
        primary: name of the score that decides.
        progress: gets steps done and steps in all after every step.
        history: what was said, an entry for each epoch.
    """

    say: Say
    rows: int
    epochs: int
    primary: str
    progress: Progress | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    _started: float = 0.0
    _trained: float = 0.0
    _step: float = 0.0
    _steps: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        return statistics.median(self._steps) if self._steps else 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.append(time.perf_counter() - self._step)
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trained = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
        epoch = round(state.epoch)
        found = {name[5:]: value for name, value in metrics.items() if name.startswith("eval_")}
        self.history.append({"epoch": epoch, "loss": loss, **found})
        second = "  macro F1 {:.4f}".format(found["macro_f1"]) if "macro_f1" in found.keys() - {self.primary} else ""
        self.say(
            f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  validation {self.primary.replace('_', ' ')} "
            f"{found[self.primary]:.4f}{second}  {time.perf_counter() - self._started:.1f} s  "
            f"{self.rows / (self._trained - self._started):.0f} examples/s"
        )
