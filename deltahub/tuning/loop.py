"""The transformers Trainer around our masters: quiet, one line an epoch, small checkpoints, the best epoch kept."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from deltahub import digest
from deltahub.errors import DataError, MismatchError, StoreError, UsageError
from deltahub.files import store_errors, write_atomic
from deltahub.tuning.pafi import Masters

Say = Callable[[str], None]
Progress = Callable[[int, int], None]

_MASTERS = "masters.safetensors"
_RUN = "run.json"
_SEAL = "sha256.json"
_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        step, best = self.state.global_step, self.state.best_global_step
        try:
            super()._save_checkpoint(model, trial)
            _seal(folder / f"checkpoint-{step}")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
            reason = " ".join(str(error).split())[:160]
            raise StoreError(
                f"cannot write a checkpoint into {folder} ({reason})",
                hint="check that it is writable and has room, then resume",
            ) from error
        for older, path in _checkpoints(folder):
            if older not in (step, best):
                shutil.rmtree(path, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / _MASTERS
        try:
            state = load_file(path)
        except (OSError, SafetensorError):  # it was whole when the run began
            raise DataError(f"{path} was damaged or removed during the training", hint="resume the run") from None
        self.masters.load(state)

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
        save_total_limit=None,  # our own rotation: the Trainer's would take a checkpoint-9-backup for one of its own
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
    """The newest checkpoint that is whole, and whose best epoch so far is whole too; None where a run starts anew."""
    whole = {step: path for step, path in _checkpoints(folder) if _is_whole(path)}
    for step in sorted(whole, reverse=True):
        state = json.loads((whole[step] / _STATE).read_text(encoding="utf-8"))
        if state["best_global_step"] in whole:
            return whole[step]
    return None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, whole or not."""
    found = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match[1]), path) for match, path in found if match]


def _seal(checkpoint: Path) -> None:
    """Notes the digest of every file, as the last one: what is not as noted was cut short or damaged."""
    digests = {path.name: digest.of_file(path) for path in checkpoint.iterdir() if path.is_file()}
    digests.pop(_SEAL, None)
    write_atomic(checkpoint / _SEAL, [json.dumps(digests, sort_keys=True).encode()])


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / _SEAL).read_bytes())
        return {_MASTERS, _STATE} <= digests.keys() and all(
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
