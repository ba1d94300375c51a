"""The transformers Trainer around our masters: quiet, one line an epoch, small checkpoints, the best epoch kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from deltahub.errors import DataError, MismatchError, UsageError
from deltahub.tuning.pafi import Masters

Say = Callable[[str], None]
Progress = Callable[[int, int], None]

_MASTERS = "masters.safetensors"
_RUN = "run.json"
_BEST = "eval_accuracy"
_SELECTION = "eval_selection"


class MastersTrainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    """Saves and loads the masters in place of the model, and stops at the first loss that is no number."""

    def __init__(self, masters: Masters, lines: EpochLines, **arguments: Any) -> None:
        super().__init__(**arguments, callbacks=[lines])
        self.remove_callback(PrinterCallback)
        self.masters = masters
        self.lines = lines

    def best_metrics(self) -> dict[str, float]:
        """``validation_accuracy`` and ``validation_macro_f1`` of the epoch that is kept, and which it is."""
        history = self.state.log_history
        best = next(entry for entry in history if _BEST in entry and entry["step"] == self.state.best_global_step)
        return {
            "validation_accuracy": best[_BEST],
            "validation_macro_f1": best["eval_macro_f1"],
            "best_epoch": round(best["epoch"]),
        }

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise DataError(
                f"the training diverged in step {self.state.global_step + 1}", expected="a finite loss",
                got=f"{loss.item()}", hint="lower the learning rates",
            )  # fmt: skip
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu() for name, tensor in self.masters.state().items()}, folder / _MASTERS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.masters.load(load_file(Path(resume_from_checkpoint) / _MASTERS))

    def _load_best_model(self) -> None:
        # by its step, not by the path that was noted: the state folder may have been moved since
        step = self.state.best_global_step
        self._load_from_checkpoint(str(Path(self.args.output_dir) / f"checkpoint-{step}"))


@dataclass
class EpochLines(TrainerCallback):  # type: ignore[misc]
    """Says one line after each epoch.

    Attributes:
        rows: training rows of an epoch.
        progress: gets steps done and steps in all after every step.
        epochs: how many there will be.
        history: what was said, an entry for each epoch.
    """

    say: Say
    rows: int
    epochs: int
    progress: Progress | None = None
    started: float = 0.0
    trained: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trained = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
        epoch = round(state.epoch)
        self.history.append({"epoch": epoch, "loss": loss, "accuracy": metrics[_BEST]})
        self.say(
            f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  validation accuracy {metrics[_BEST]:.4f}  "
            f"macro F1 {metrics['eval_macro_f1']:.4f}  {time.perf_counter() - self.started:.1f} s  "
            f"{self.rows / (self.trained - self.started):.0f} examples/s"
        )


def arguments(folder: Path, *, epochs: int, batch_size: int, seed: int, device: torch.device) -> TrainingArguments:
    """Arguments that evaluate and save after each epoch and keep the best and the last."""
    made = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4 * batch_size,
        max_grad_norm=0.0,  # the masters are clipped in their own hook
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_total_limit=2,  # the best and the last; with 1 the Trainer ends by deleting the last
        load_best_model_at_end=True,
        metric_for_best_model=_SELECTION,
        greater_is_better=True,
        seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        report_to=[],
    )
    assert made.device.type == device.type
    made._n_gpu = min(made.n_gpu, 1)  # masters live on one device: several would be wrapped in DataParallel
    return made


def open_state(folder: Path, run: Mapping[str, object], *, resume: bool) -> Path | None:
    """Makes ``folder`` the place of this run; returns the checkpoint to go on from, if there is one.

    Args:
        run: everything that decides the result; a run is only resumed under the very same.

    Raises:
        UsageError: the folder holds an earlier run and ``resume`` is not set.
        MismatchError: it holds another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _RUN
    text = json.dumps(run, sort_keys=True)
    if note.exists():
        if not resume:
            raise UsageError(f"{folder} holds an earlier run", hint="resume it, or give another folder")
        _same_run(folder, json.loads(note.read_text(encoding="utf-8")), json.loads(text))
    else:
        note.write_text(text, encoding="utf-8")
    return last_checkpoint(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (its state is written last)."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((path for path in found if _is_whole(path / "trainer_state.json")), None)


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _same_run(folder: Path, earlier: dict[str, object], now: dict[str, object]) -> None:
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise MismatchError(
                f"the run in {folder} has another {name}", expected=_short(earlier.get(name)),
                got=_short(now.get(name)), hint="resume with what it was started with, or give another folder",
            )  # fmt: skip


def _short(value: object) -> str:
    return str(value)[:80]
