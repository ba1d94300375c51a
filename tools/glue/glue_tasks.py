"""GLUE (Wang et al., ICLR 2019): each task's columns, classes and score, and its rows from the hub or a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltahub.errors import DataError, DeltahubError, UsageError
from deltahub.tuning import data
from deltahub.tuning.data import Dataset, sources

REPOSITORY = "nyu-mll/glue"
_SECONDS = 10


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    Attributes:
        texts: column of the text, or of both.
        names: classes in the order of their numbers in column ``label``; none where that holds a number to predict.
        scores: validation scores whose mean is the task's, as the paper has them.
        validation: the split to score on.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"

    @property
    def kind(self) -> str:
        return "text-classification" if self.names else "regression"

    def score(self, metrics: Mapping[str, float]) -> float:
        """The task's score in per cent, from the metrics of a training."""
        return 100 * sum(metrics[f"validation_{name}"] for name in self.scores) / len(self.scores)


TASKS = {
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": Task(("sentence1", "sentence2"), scores=("pearson", "spearman")),
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("mcc",)),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": Task(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), validation="validation_matched"
    ),
}


def check_hub() -> None:
    """Raises DataError at once, before anything is loaded, where GLUE cannot be had from the Hugging Face hub."""
    from huggingface_hub import HfApi, constants

    if find_spec("datasets") is None:
        raise UsageError("GLUE needs the datasets library", hint="install deltahub[train], or give --data DIR")
    if constants.HF_HUB_OFFLINE:
        return  # the user says that all is in the cache
    try:
        HfApi().dataset_info(REPOSITORY, timeout=_SECONDS)
    except Exception as error:  # noqa: BLE001 (proxies, DNS and TLS fail in any way there is)
        raise _unreachable(error) from None


def load(name: str, folder: Path | None = None) -> tuple[Dataset, Dataset]:
    """Training and validation rows of a task.

    Args:
        folder: with ``<task>/train.jsonl`` and ``<task>/validation.jsonl`` in GLUE's own columns, labels as numbers or
            names; None takes the Hugging Face hub.

    Raises:
        DataError: rows that cannot be had, or that are none of the task's.
    """
    task = TASKS[name]
    parts = (
        [_local(task, folder / name / f"{part}.jsonl") for part in ("train", "validation")]
        if folder
        else (_remote(task, name))
    )
    train, validation = (_rows(name, task, part) for part in parts)
    second = task.texts[1] if len(task.texts) > 1 else None
    return data.load(train, validation, kind=task.kind, text=task.texts[0], text_pair=second)


def _local(task: Task, path: Path) -> Iterable[Mapping[str, object]]:
    columns = {"text": task.texts[0], "label": "label"} | ({"text_pair": task.texts[1]} if task.texts[1:] else {})
    return [row for _, row in sources.open_source(path, sources.Columns(columns), str(path)).rows]


def _remote(task: Task, name: str) -> list[Any]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        found = load_dataset(REPOSITORY, name)
        return [found["train"], found[task.validation]]
    except Exception as error:  # noqa: BLE001 (as above)
        raise _unreachable(error) from None


def _rows(name: str, task: Task, part: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Rows with names for class numbers; the few of GLUE whose text is blank are left out, and counted aloud."""
    kept: list[Mapping[str, object]] = []
    blank = 0
    for number, row in enumerate(part, start=1):
        if not all(str(row[column] or "").strip() for column in task.texts):
            blank += 1
            continue
        label = row["label"]
        if task.names and type(label) is int:
            if not 0 <= label < len(task.names):
                raise DataError(f"{name}, row {number}: 'label'", expected=f"0 to {len(task.names) - 1}", got=label)
            label = task.names[label]
        kept.append({**{column: row[column] for column in task.texts}, "label": label})
    if blank:
        print(f"{name}: {blank} rows with a blank text are left out", file=sys.stderr)
    return kept


def _unreachable(error: Exception) -> DeltahubError:
    return DataError(
        f"{REPOSITORY} cannot be had from the Hugging Face hub ({' '.join(str(error).split())[:120]})",
        expected="a network, or the data in its cache with HF_HUB_OFFLINE=1",
        hint="or give a folder of your own with --data DIR",
    )
