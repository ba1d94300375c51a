"""Training one task on a base: texts and labels in, a delta out."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from deltahub import digest
from deltahub.backbone import device_named, load_backbone, quiet
from deltahub.checkpoint import Base
from deltahub.convert.finetuned import open_finetuned
from deltahub.delta import Delta
from deltahub.errors import MismatchError, UsageError
from deltahub.heads import know_padding, load_tokenizer, longest_input, share_inner, shortest_input, task_model
from deltahub.manifest import Plain
from deltahub.mask import Mask
from deltahub.names import check_task
from deltahub.pooling import default_pooling
from deltahub.resident import Resident
from deltahub.tuning.callbacks import Progress, Say
from deltahub.tuning.choice import Adapters, mask_for
from deltahub.tuning.data import Dataset, class_weights, majority_share
from deltahub.tuning.delta_model import DeltaModel
from deltahub.tuning.loop import fit
from deltahub.tuning.metrics import check_installed, primary
from deltahub.tuning.settings import LENGTH, Settings
from deltahub.tuning.state import open_state


@dataclass(frozen=True)
class Trained:
    """A training's result.

    Attributes:
        delta: the best epoch.
        metrics: what the manifest says of it.
        history: per epoch of this call ``epoch``, ``loss`` and the validation scores.
        seconds: wall time of this call, loading included.
        step_seconds: median wall time of a step.
        trained_parameters: how many numbers the optimizer moved.
        diverged: the step at which the loss was no number any more; the best epoch before is what was kept.
    """

    delta: Delta
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    step_seconds: float
    trained_parameters: int
    diverged: int | None = None


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(
    base: Base,
    rows: Dataset,
    validation: Dataset,
    *,
    task: str,
    test: Dataset | None = None,
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
    global random generators are seeded. Ctrl-C lets the step under way end, keeps it in ``state`` and raises
    KeyboardInterrupt.

    Args:
        rows: to train on; ``validation`` has the same kind and classes.
        task: name of the task in a hub.
        test: rows that the kept epoch is scored on, and that decide nothing; their scores go into the manifest.
        mask: positions to train; None builds the method's own at 0.5 %.
        method: one of `methods.METHODS`, or some joined by ``+``.
        state: folder for checkpoints after each epoch and at an interruption; None uses a temporary one.
        resume: go on from the last checkpoint in ``state``, if it has one; the result is that of a run without a break.
        device: torch device such as ``cuda``.
        created: UTC time for the manifest; None takes the clock's.
        say: gets each line of words.
        progress: gets steps done and steps in all after every step.

    Raises:
        UsageError: arguments that cannot be meant, or a ``state`` that is no run's and not empty.
        MismatchError: mask, base and ``state`` do not belong together, or the base has no model of this kind.
        CheckpointError: the base has no usable config or tokenizer.
        DataError: the loss is no number before an epoch has ended, or ``state`` is damaged.
        StoreError: a checkpoint cannot be written.
    """
    start = time.perf_counter()
    asked = settings = settings or Settings()
    check_task(task)
    check_installed()
    for other, what in ((validation, "validation"), (test, "test")):
        _check_rows(rows, other, what)
    if rows.kind == "embeddings" and min(len(rows), settings.batch_size) < 2:
        raise UsageError("a batch of embeddings", expected="2 rows or more, to tell apart", got=1)
    if settings.class_weights == "balanced":
        class_weights(rows)  # refuses a kind that has none before anything is loaded
    mask = mask_for(method, base, mask)
    with _folder(state) as folder, quiet():
        run = _run(base, mask, method, settings, rows, validation)
        checkpoint = open_state(folder, run, resume=resume)
        set_seed(settings.seed)
        tokenizer = load_tokenizer(base)
        model = _model(base, mask, method, settings, rows, device_named(device))
        know_padding(model.model, tokenizer)
        settings = replace(settings, max_length=_length(base, tokenizer, model.config, asked.max_length, rows))
        open_finetuned(base, model.model)  # what could not be exported is refused before it is trained
        for line in (*model.notes, _headline(model, rows, validation)):
            say(f"{task}: {line}")
        try:
            fitted = fit(
                model, model.groups(lr=settings.lr, head_lr=settings.head_lr, weight_decay=settings.weight_decay), rows,
                validation, settings, tokenizer=tokenizer, folder=folder, say=say, progress=progress,
                checkpoint=checkpoint, test=test,
            )  # fmt: skip
        except KeyboardInterrupt:
            kept = f"what was done is kept in {state}: resume from there" if state else "nothing is kept"
            say(f"{task}: training was interrupted; {kept}")
            raise
        finally:
            model.detach()
        metrics = fitted.metrics | {"train_rows": len(rows), "validation_rows": len(validation)}
        settled = {**_plain(settings), "run": identity(base, mask, method, asked, rows, validation, test)}
        delta = _export(model, task, rows, settled, metrics, created)
    seconds = time.perf_counter() - start
    score = primary(rows.kind, rows.names)
    say(
        f"{task}: kept epoch {metrics['best_epoch']} of {settings.epochs}, validation {score.replace('_', ' ')} "
        f"{metrics[f'validation_{score}']:.4f} on {len(validation):,} rows; {stored(delta)}; {seconds:.1f} s in all"
    )
    return Trained(
        delta, metrics, fitted.history, seconds, fitted.step_seconds, model.trained_parameters, fitted.diverged
    )


def stored(delta: Delta) -> str:
    """What a delta stores, for people: ``113,566 values and a head of 2,316 parameters, 464 kB``."""
    count = {
        group: sum(_size(raw.shape) for raw in delta.raw(group).values()) for group in ("dense", "adapter", "head")
    }
    parts = [f"{len(delta.values):,} values"] if delta.values is not None else []
    parts += [f"{count['dense']:,} numbers of whole tensors"] if count["dense"] else []
    parts += [f"{count['adapter']:,} of adapters"] if count["adapter"] else []
    parts += [f"a head of {count['head']:,} parameters"] if count["head"] else []
    size = sum(len(part) for part in delta.dump())
    return f"stored {' and '.join(parts) or 'nothing'}, {size / 1000:,.0f} kB before compression"


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _check_rows(rows: Dataset, other: Dataset | None, what: str) -> None:
    if other is None:
        return
    if rows.kind != other.kind:
        raise UsageError(f"the kind of the {what} set", expected=rows.kind, got=other.kind)
    if rows.names != other.names:
        raise UsageError(f"the classes of the {what} set", expected=rows.names, got=other.names)
    if (rows.pairs is None) != (other.pairs is None):
        raise UsageError(f"the {what} set", expected="pairs of texts where the training set has them, and only there")


def _length(base: Base, tokenizer: Any, config: Any, asked: int | None, rows: Dataset) -> int:
    """Tokens per text: what was asked for, if the base takes it; else what `Settings` has."""
    most = longest_input(tokenizer, config)
    length = min(LENGTH, most) if asked is None else asked
    if length > most:
        raise UsageError("max_length", expected=f"at most {most}, which is all that {base.id} takes", got=length)
    pair = rows.pairs is not None and rows.kind != "embeddings"
    if length < (least := shortest_input(tokenizer, pair)):
        raise UsageError("max_length", expected=f"at least {least}, or no word is left", got=length)
    return length


def _check_embeds(base: Base, model: Any) -> None:
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
        raise MismatchError(
            f"{base.id} gives no vectors for texts", expected="an encoder or a decoder of text",
            got=type(model).__name__, hint="choose another base",
        )  # fmt: skip


def _model(
    base: Base, mask: Mask | None, method: str, settings: Settings, rows: Dataset, device: torch.device
) -> DeltaModel:
    resident = Resident(load_backbone(base).to(device), base, mask)
    lacking = resident.binding.own
    model = task_model(
        resident.module, resident.module.config, rows.kind, rows.names, lacking=lacking,
        head="linear" if settings.head == "linear" else "native",
        pooling=settings.pooling,
    )  # fmt: skip
    if rows.kind == "embeddings":
        _check_embeds(base, model)
        frozen = lacking  # a pooler that the base lacks has no part in them
    else:
        frozen = share_inner(model, lacking) if settings.head == "shared" else ()
    adapters = Adapters(settings.bottleneck, settings.activation, settings.layers, settings.seed)
    made = DeltaModel(model, resident, method, adapters, frozen)
    if settings.head == "shared" and not frozen:
        made.notes.append("the native head has no inner layer that the base lacks: there is nothing to share")
    if not made.trained_parameters:
        raise MismatchError(f"method {method!r} trains nothing here", hint="embeddings have no head: train with pafi")
    return made


def _export(
    model: DeltaModel, task: str, rows: Dataset, settled: dict[str, Plain], metrics: dict[str, float],
    created: str | None,
) -> Delta:  # fmt: skip
    inputs: dict[str, Plain] = {"max_length": settled["max_length"]}
    if rows.kind == "embeddings":
        inputs |= {"pooling": settled["pooling"] or default_pooling(model.config), "normalize": True}
    elif rows.pairs is not None:
        inputs["pair"] = True
    return model.export(
        task=task, kind=rows.kind, labels=rows.names, metrics=metrics, inputs=inputs,
        settings={"optimizer": "adamw", "schedule": "linear", **settled}, created=created,
    )  # fmt: skip


def identity(
    base: Base, mask: Mask | None, method: str, settings: Settings, rows: Dataset, validation: Dataset,
    test: Dataset | None = None,
) -> str:  # fmt: skip
    """A digest of all that decides the result of `train`; the manifest's method notes it as ``run``."""
    run = _run(base, mask, method, settings, rows, validation)
    scored = None if test is None else _digest(test)
    return digest.of_bytes(json.dumps([run, scored], sort_keys=True).encode())


def _run(
    base: Base, mask: Mask | None, method: str, settings: Settings, rows: Dataset, validation: Dataset
) -> dict[str, object]:
    """All that decides the training, by name, as it is noted beside the checkpoints."""
    mask = mask_for(method, base, mask)
    return {
        "base": base.digest,
        "mask": mask.digest if mask else None,
        "method": method,
        "data": [_digest(rows), _digest(validation)],
        **_plain(settings),
    }


def _digest(rows: Dataset) -> str:
    return digest.of_bytes(json.dumps([rows.kind, rows.texts, rows.pairs, rows.labels]).encode())


def _plain(settings: Settings) -> dict[str, Plain]:
    return asdict(settings) | {"layers": list(settings.layers)}


def _headline(model: DeltaModel, rows: Dataset, validation: Dataset) -> str:
    guess = ""
    if rows.kind == "text-classification":
        guess = f"; always guessing the largest class scores {majority_share(validation):.3f}"
    return (
        f"{model.method} on {model.resident.base.id}, {model.trained_parameters:,} parameters to train; "
        f"{len(rows):,} rows to train on, {len(validation):,} to choose by{guess}"
    )


@contextmanager
def _folder(state: str | Path | None) -> Iterator[Path]:
    if state is not None:
        yield Path(state)
        return
    with tempfile.TemporaryDirectory(prefix="deltahub-") as temporary:
        yield Path(temporary)
