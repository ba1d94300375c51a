"""Training one task on a base: texts and labels in, a delta out."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup, set_seed

from deltahub import digest
from deltahub.backbone import load_backbone, quiet
from deltahub.checkpoint import Base
from deltahub.convert.extract import extract
from deltahub.delta import Delta
from deltahub.errors import UsageError
from deltahub.heads import head_names, load_tokenizer, longest_input, shortest_input, task_model
from deltahub.mask import Mask
from deltahub.names import check_task
from deltahub.resident import Resident
from deltahub.tuning import loop
from deltahub.tuning.data import Dataset, majority_share
from deltahub.tuning.loop import EpochLines, MastersTrainer, Progress, Say
from deltahub.tuning.methods import biases, mask_for, method_named
from deltahub.tuning.metrics import accuracy, log_loss, macro_f1
from deltahub.tuning.pafi import Masters
from deltahub.tuning.settings import Settings

KIND = "text-classification"


@dataclass(frozen=True)
class Trained:
    """A training's result.

    Attributes:
        delta: the best epoch.
        metrics: what the manifest says of it.
        history: per epoch of this call ``epoch``, ``loss`` and validation ``accuracy``.
        seconds: wall time of this call, loading included.
    """

    delta: Delta
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(repr=False)
    seconds: float


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(
    base: Base,
    rows: Dataset,
    validation: Dataset,
    *,
    task: str,
    mask: Mask | None = None,
    method: str = "pafi",
    settings: Settings | None = None,
    state: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    created: str | None = None,
    say: Say = say_on_stderr,
    progress: Progress | None = None,
) -> Trained:
    """Fine-tunes ``base`` on ``rows``, returns the epoch that did best on ``validation``, the surer of equals.

    One seed gives the same bits on one machine, one number of threads, and the CPU. torch's, NumPy's and Python's
    global random generators are seeded.

    Args:
        rows: to train on; ``validation`` has the same classes.
        task: name of the task in a hub.
        mask: positions to train; None builds the method's own at 0.5 %.
        method: one of `methods.METHODS`.
        state: folder for checkpoints after each epoch; None uses a temporary one.
        resume: go on from the last checkpoint in ``state``, if it has one; the result is that of a run without a break.
        device: torch device such as ``cuda``.
        created: UTC time for the manifest; None takes the clock's.
        say: gets each line of words.
        progress: gets steps done and steps in all after every step.

    Raises:
        UsageError: arguments that cannot be meant, or a ``state`` that is no run's and not empty.
        MismatchError: mask, base and ``state`` do not belong together, or the base has no text classification model.
        CheckpointError: the base has no usable config or tokenizer.
        DataError: the loss is no longer finite, or ``state`` is damaged.
        StoreError: a checkpoint cannot be written.
    """
    start = time.perf_counter()
    settings = settings or Settings()
    check_task(task)
    if rows.names != validation.names:
        raise UsageError("the classes of the validation set", expected=rows.names, got=validation.names)
    mask = mask_for(method, base, mask)
    with _folder(state) as folder, quiet():
        checkpoint = loop.open_state(folder, _identity(base, mask, method, settings, rows, validation), resume=resume)
        set_seed(settings.seed)
        bound = _bind(base, mask, method, rows.names, _device(device))
        say(_headline(bound, task, method, rows, validation))
        trainer = _trainer(bound, rows, validation, settings, folder, say, progress)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            kept = f"the epochs that ended are kept in {state}: resume from there" if state else "nothing is kept"
            say(f"{task}: training was interrupted; {kept}")
            raise
        finally:
            bound.masters.detach()
        metrics = trainer.best_metrics() | {"train_rows": len(rows), "validation_rows": len(validation)}
        delta = _delta(bound, task, method, settings, metrics, created)
    seconds = time.perf_counter() - start
    say(
        f"{task}: kept epoch {metrics['best_epoch']} of {settings.epochs}, validation accuracy "
        f"{metrics['validation_accuracy']:.4f} on {len(validation):,} rows; {seconds:.1f} s in all"
    )
    return Trained(delta, metrics, trainer.lines.history, seconds)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        reason = str(error).partition("\n")[0][:100]
        raise UsageError(f"device {name!r} ({reason})", expected="cpu, or a device that torch sees here") from None


@dataclass(frozen=True)
class _Bound:
    """A task model on a bound base, ready to train."""

    resident: Resident
    model: Any
    masters: Masters
    dense: tuple[str, ...]


def _bind(base: Base, mask: Mask | None, method: str, labels: tuple[str, ...], device: torch.device) -> _Bound:
    resident = Resident(load_backbone(base).to(device), base, mask)
    lacking = resident.binding.own
    model = task_model(resident.module, resident.module.config, KIND, labels, lacking=lacking)
    dense = biases(resident) if method_named(method).biases else {}
    parameters = dict(model.named_parameters())
    whole = {f"head.{name}": parameters[name] for name in head_names(model, lacking) if name in parameters}
    whole |= {f"dense.{name}": parameter for name, parameter in dense.items()}
    return _Bound(resident, model, Masters(model, resident, whole), tuple(dense))


def _trainer(
    bound: _Bound,
    rows: Dataset,
    validation: Dataset,
    settings: Settings,
    folder: Path,
    say: Say,
    progress: Progress | None,
) -> MastersTrainer:
    base = bound.resident.base
    tokenizer = load_tokenizer(base)
    if settings.max_length > (most := longest_input(tokenizer, bound.model.config)):
        raise UsageError(
            "max_length", expected=f"at most {most}, which is all that {base.id} takes", got=settings.max_length
        )
    if settings.max_length < (least := shortest_input(tokenizer)):
        raise UsageError("max_length", expected=f"at least {least}, or no word is left", got=settings.max_length)
    whole = bound.masters.whole
    head = [master for name, master in whole.items() if name.startswith("head.")]
    dense = [master for name, master in whole.items() if name.startswith("dense.")]
    groups = [
        {"params": [*bound.masters.values, *dense], "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": head, "lr": settings.head_lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    bound.masters.follow(optimizer, settings.max_grad_norm)
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    return MastersTrainer(
        bound.masters,
        EpochLines(say, len(rows), settings.epochs, progress),
        model=bound.model,
        args=loop.arguments(
            folder, epochs=settings.epochs, batch_size=settings.batch_size, seed=settings.seed,
            device=next(bound.model.parameters()).device,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=_encoded(tokenizer, rows, settings.max_length),
        eval_dataset=_encoded(tokenizer, validation, settings.max_length),
        processing_class=tokenizer,
        compute_metrics=_scores,
        optimizers=(optimizer, schedule),
    )  # fmt: skip


def _encoded(tokenizer: Any, rows: Dataset, max_length: int) -> list[dict[str, Any]]:
    columns = tokenizer(list(rows.texts), truncation=True, max_length=max_length)
    examples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [example | {"labels": label} for example, label in zip(examples, rows.label_ids(), strict=True)]


def _scores(prediction: Any) -> dict[str, float]:
    predicted = np.argmax(prediction.predictions, axis=-1)
    truth = prediction.label_ids
    right = accuracy(truth, predicted)
    # of epochs that get as many right, the one that is surer of it
    selection = right - 1e-6 * min(log_loss(truth, prediction.predictions), 100.0)
    return {"accuracy": right, "macro_f1": macro_f1(truth, predicted), "selection": selection}


def _delta(
    bound: _Bound, task: str, method: str, settings: Settings, metrics: dict[str, float], created: str | None
) -> Delta:
    """Everything that the training changed; `extract` refuses if that is more than the method may change."""
    return extract(
        bound.resident.base,
        bound.model,
        bound.resident.mask,
        task=task,
        dense=bound.dense,
        kind=KIND,
        labels=tuple(bound.model.config.id2label.values()),
        method={"name": method, "optimizer": "adamw", "schedule": "linear", **asdict(settings)},
        metrics=metrics,
        inputs={"max_length": settings.max_length},
        created=created,
    )


def _identity(
    base: Base, mask: Mask | None, method: str, settings: Settings, rows: Dataset, validation: Dataset
) -> dict[str, object]:
    """All that decides the result, by name, as it is noted beside the checkpoints."""
    data = [json.dumps([part.texts, part.labels]).encode() for part in (rows, validation)]
    return {
        "base": base.digest,
        "mask": mask.digest if mask else None,
        "method": method,
        "data": digest.of_bytes(*data),
        **asdict(settings),
    }


def _headline(bound: _Bound, task: str, method: str, rows: Dataset, validation: Dataset) -> str:
    values = sum(master.numel() for master in bound.masters.values)
    sizes = {name: master.numel() for name, master in bound.masters.whole.items()}
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    dense = sum(sizes.values()) - head
    parts = [f"{values:,} masked values"] if values else []
    parts += [f"{dense:,} biases"] if dense else []
    return (
        f"{task}: {method} on {bound.resident.base.id}, {' and '.join([*parts, f'a head of {head:,} parameters'])}; "
        f"{len(rows):,} rows to train on, {len(validation):,} to choose by; "
        f"always guessing the largest class scores {majority_share(validation):.3f}"
    )


@contextmanager
def _folder(state: str | Path | None) -> Iterator[Path]:
    if state is not None:
        yield Path(state)
        return
    with tempfile.TemporaryDirectory(prefix="deltahub-") as temporary:
        yield Path(temporary)
