"""The transformers Trainer around masters: quiet, one line an epoch, small checkpoints, the best epoch kept."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, get_linear_schedule_with_warmup

from deltahub.errors import DataError, MismatchError, StoreError
from deltahub.pooling import default_pooling
from deltahub.tuning import state
from deltahub.tuning.batches import Collator, Example, LengthGrouped, check_ids, examples
from deltahub.tuning.callbacks import EpochLines, Progress, Say, Stopper
from deltahub.tuning.data import Dataset, class_weights
from deltahub.tuning.metrics import primary, scores
from deltahub.tuning.objectives import Inputs, Objective
from deltahub.tuning.settings import LENGTH, Settings

_SELECTION = "eval_selection"


@dataclass(frozen=True)
class Fitted:
    """What a training came to.

    Attributes:
        metrics: of the epoch that is kept, ``validation_<name>`` (and ``test_<name>``) each, and ``best_epoch``.
        history: per epoch of this call ``epoch``, ``loss`` and the validation scores.
        step_seconds: median wall time of a step, forward to optimizer; 0 where no step was left to do.
        diverged: the step whose loss was no number, after which the best epoch so far was kept; None where none was.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]] = field(repr=False)
    step_seconds: float
    diverged: int | None = None


def fit(
    trainee: nn.Module,
    groups: list[dict[str, Any]],
    rows: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    tokenizer: Any,
    folder: Path,
    say: Say,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    test: Dataset | None = None,
) -> Fitted:
    """Trains with AdamW and a linear schedule; ``trainee`` is left as its best epoch on ``validation`` was.

    Args:
        trainee: its ``state_dict()`` is what is kept of an epoch; called with a batch's columns, it gives ``logits``
            (for embeddings ``last_hidden_state``).
        groups: parameter groups with ``lr`` and ``weight_decay``.
        folder: for checkpoints.
        test: rows that the best epoch is scored on.
        checkpoint: to go on from; the end is that of a run without a break, to the bit on the CPU.

    Raises:
        DataError: the loss is no number before the end of the first epoch.
        StoreError: a checkpoint cannot be written.
        KeyboardInterrupt: after the step under way was finished and a checkpoint written.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, foreach=parameters[0].device.type != "cpu")
    per_epoch = -(-len(rows) // (settings.batch_size * settings.accumulate))
    steps = per_epoch * settings.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    if settings.checkpointing:
        recompute(trainee)
    length = settings.max_length or LENGTH
    encoded = [examples(tokenizer, part, length) for part in (rows, validation)]
    check_ids([*encoded[0], *encoded[1]], trainee.config)
    lines = EpochLines(say, len(rows), settings.epochs, primary(rows.kind, rows.names), progress)
    trainer = QuietTrainer(
        _objective(trainee, rows, settings),
        rows.names,
        lines,
        model=trainee,
        args=_arguments(folder, settings, parameters[0].device),
        data_collator=Collator(tokenizer),
        train_dataset=encoded[0],
        eval_dataset=encoded[1],
        optimizers=(optimizer, schedule),
    )
    diverged = None
    with _interruptible(trainer):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except _Diverged as error:
            diverged = error.step
            if trainer.state.best_global_step is None:
                raise DataError(
                    f"the training diverged in step {error.step}", expected="a finite loss and outputs",
                    got=f"{error.loss}", hint="lower the learning rates",
                ) from None  # fmt: skip
            trainer._load_best_model()
            say(f"the training diverged in step {error.step}: the best epoch before is kept; lower the learning rates")
    metrics = trainer.best_metrics()
    if test is not None:
        try:
            metrics |= trainer.test_metrics(examples(tokenizer, test, length))
        except _Diverged:
            raise DataError(
                "the trained task gives NaN or infinity on test rows", hint="lower the learning rates"
            ) from None
    return Fitted(metrics, lines.history, lines.step_seconds, diverged)


def recompute(trainee: nn.Module) -> None:
    """Lets transformers recompute activations in the backward pass instead of keeping them."""
    own = getattr(trainee, "model", trainee)
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the second one in older releases
    for module in (trainee, *own.modules()):  # a linear head is no transformers class, but its backbone is
        if hasattr(module, names[0]):
            module.activation_checkpointing_enable()
            return
        if hasattr(module, names[1]):
            module.gradient_checkpointing_enable({"use_reentrant": False})
            return
    raise MismatchError(f"{type(own).__name__} cannot recompute activations", hint="train without checkpointing")


def _objective(trainee: nn.Module, rows: Dataset, settings: Settings) -> Objective:
    weights = torch.tensor(class_weights(rows)) if settings.class_weights == "balanced" else None
    pooling = settings.pooling or default_pooling(trainee.config)
    return Objective(rows.kind, weights, pooling)


class _Diverged(Exception):
    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step = step
        self.loss = loss


class QuietTrainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    """Minimises an `Objective`, saves only what is trained, and stops at the first loss that is no number."""

    def __init__(self, objective: Objective, names: tuple[str, ...], lines: EpochLines, **arguments: Any) -> None:
        self.objective = objective
        self.names = names
        super().__init__(**arguments, callbacks=[lines], compute_metrics=self._scores)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # the objective is a mean over one forward pass
        self.stop = threading.Event()
        self.add_callback(Stopper(self.stop, lambda: self._save_checkpoint(self.model, None)))

    def best_metrics(self) -> dict[str, float]:
        """``validation_<name>`` of the epoch that is kept, and which it is."""
        at = self.state.best_global_step
        best = next(entry for entry in self.state.log_history if _SELECTION in entry and entry["step"] == at)
        return {**_named(best, "eval_", "validation_"), "best_epoch": round(best["epoch"])}

    def test_metrics(self, rows: list[Example]) -> dict[str, float]:
        """``test_<name>`` of the model as it is."""
        return _named(self.predict(rows).metrics, "test_", "test_")

    def compute_loss(
        self, model: nn.Module, inputs: Inputs, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = self.objective(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Inputs, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            loss, outputs = self.objective(model, inputs)
        return loss, outputs, inputs["labels"] if "labels" in inputs else torch.zeros(len(outputs[0]))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise _Diverged(self.state.global_step + 1, loss.item())
        return loss

    def _scores(self, prediction: Any) -> dict[str, float]:
        if not all(np.isfinite(part).all() for part in _arrays(prediction.predictions)):
            raise _Diverged(self.state.global_step, float("nan"))
        found = scores(self.objective.kind, prediction.label_ids, prediction.predictions, self.names)
        # of epochs that are as good, the one that is surer of it
        tie = 1e-6 * min(found.get("log_loss", 0.0), 100.0)
        return {**found, "selection": found[primary(self.objective.kind, self.names)] - tie}

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        size = self.args.per_device_train_batch_size
        return LengthGrouped(train_dataset or self.train_dataset, size, self.args.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        step, best = self.state.global_step, self.state.best_global_step
        try:
            super()._save_checkpoint(model, trial)
            state.seal(folder / f"checkpoint-{step}")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
            reason = " ".join(str(error).split())[:160]
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
            raise StoreError(
                f"cannot write a checkpoint into {folder} ({reason})",
                hint="check that it is writable and has room, then resume",
            ) from error
        state.keep_only(folder, {step, best})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / state.MASTERS
        try:
            self.model.load_state_dict(load_file(path))
        except (OSError, SafetensorError):  # it was whole when the run began
            raise DataError(f"{path} was damaged or removed during the training", hint="resume the run") from None

    def _load_best_model(self) -> None:
        # by its step, not by the path that was noted: the state folder may have been moved since
        self._load_from_checkpoint(str(Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"))


def _arrays(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _named(found: dict[str, float], before: str, after: str) -> dict[str, float]:
    """The scores among what the Trainer measured, with the prefix ``after`` in place of ``before``."""
    leave = ("selection", "loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {name: name.removeprefix(before) for name in found if name.startswith(before)}
    return {after + short: found[name] for name, short in names.items() if short not in leave}


@contextmanager
def _interruptible(trainer: QuietTrainer) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the step under way end and saves it; the second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: Any) -> None:
        signal.signal(number, before[signal.Signals(number)])
        trainer.stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(folder: Path, settings: Settings, device: torch.device) -> TrainingArguments:
    """Arguments that evaluate and save after each epoch and keep the best and the last."""
    made = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_total_limit=None,  # our own rotation: the Trainer's would take a checkpoint-9-backup for one of its own
        load_best_model_at_end=True,
        metric_for_best_model=_SELECTION,
        greater_is_better=True,
        seed=settings.seed,
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
