"""One run in a process of its own: trains, tests what a hub gives back under every rounding, prints one JSON object.

`run.py` starts it and gives it the run on stdin. A process for each run makes its peak memory its own.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

from deltahub import Base, Delta, Hub, Mask, Predictor, Settings
from deltahub.errors import DeltahubError
from deltahub.tuning import data
from deltahub.tuning.data import Dataset
from deltahub.tuning.masks import gradient_mask, lift_mask
from deltahub.tuning.methods import recipe_of
from deltahub.tuning.train import train
from quality import peft_rows
from quality.results import HEAD_INT8, ROUNDINGS, Job, Protocol
from quality.rows import ROWS, Row

_MASK_TEXTS = 64
"""Training texts of each task that the gradient mask is made from, without their labels."""


def measure(job: Job, protocol: Protocol, source: str, folder: Path, work: Path) -> dict[str, Any]:
    """What is known of one run.

    Args:
        source: the base.
        folder: holds TASK/train.jsonl and so on.
        work: where masks are kept.
    """
    start = time.perf_counter()
    row = ROWS[job.row]
    base = Base.open(source)
    rows, validation, test = read_task(folder / job.task, protocol)
    settings = _settings(row, job, protocol)
    before = _memory(protocol.device)
    if row.peft:
        baseline = peft_rows.train(base, row.peft, rows, validation, settings, device=protocol.device)
        memory, metrics, step_seconds = _memory(protocol.device), baseline.metrics, baseline.step_seconds
        found = _test_peft(baseline, test)
    else:
        mask = mask_of(row, base, job.seed, folder, work)
        ours = train(
            base, rows, validation, task=job.task, mask=mask, method=str(row.method), settings=settings,
            device=protocol.device, say=lambda line: None,
        )  # fmt: skip
        memory, metrics, step_seconds = _memory(protocol.device), ours.metrics, ours.step_seconds
        found = _test_ours(ours.delta, base, mask, test, protocol.device) | {"diverged": ours.diverged}
        found["trained"] = ours.trained_parameters - found["head_trained"]
    return {
        **{name: metrics[name] for name in ("validation_accuracy", "validation_macro_f1", "best_epoch")},
        **found,
        "train_rows": len(rows),
        "test_rows": len(test),
        "majority": data.majority_share(test),
        "step_seconds": step_seconds,
        "peak_memory": memory,
        "memory_before": before,
        "seconds": time.perf_counter() - start,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("deltahub", "torch", "transformers", "peft")},
    }


def read_task(folder: Path, protocol: Protocol) -> tuple[Dataset, Dataset, Dataset]:
    """Rows to train, choose and test on, cut to what the protocol says: the first of one shuffle for all runs."""
    rows, validation = data.load(folder / "train.jsonl", folder / "validation.jsonl")
    test = data.read(folder / "test.jsonl", names=rows.names)
    return _first(rows, protocol.rows), _first(validation, protocol.held_out), _first(test, protocol.held_out)


def mask_of(row: Row, base: Base, seed: int, folder: Path, work: Path) -> Mask | None:
    """The mask of a row's method; a random one differs by ``seed``, the others are made once and kept in ``work``."""
    recipe = recipe_of(str(row.method))
    if recipe in (None, "smallest-magnitude"):
        return Mask.build(base) if recipe else None
    if recipe == "random":
        return Mask.build(base, recipe="random", seed=seed)
    file = work / f"{recipe}-{base.digest[:16]}.mask"
    if not file.exists():
        made = lift_mask(base) if recipe == "lift" else gradient_mask(base, _texts(folder))
        work.mkdir(parents=True, exist_ok=True)
        made.save(file)
    return Mask.load(file)


def _texts(folder: Path) -> list[str]:
    found: list[str] = []
    for file in sorted(folder.glob("*/train.jsonl")):
        rows = data.read(file)
        found += map(str, _first(rows, _MASK_TEXTS).texts)
    return found


def _first(rows: Dataset, most: int | None) -> Dataset:
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    return rows if most is None or most >= len(rows) else rows.take(order[:most])


def _settings(row: Row, job: Job, protocol: Protocol) -> Settings:
    return Settings(
        epochs=protocol.epochs, lr=job.lr, head_lr=job.lr if row.rates_head else protocol.head_lr,
        batch_size=protocol.batch_size, max_length=protocol.max_length, seed=job.seed, head=row.head,
    )  # fmt: skip


def _test_ours(delta: Delta, base: Base, mask: Mask | None, test: Dataset, device: str) -> dict[str, Any]:
    """Held-out figures and stored bytes of what a hub gives back."""
    hub = Hub.open("memory://quality")
    predictor = Predictor(base, mask, device=device)
    texts = list(map(str, test.texts))
    figures, stored = {}, {}
    for name in (*ROUNDINGS, HEAD_INT8):
        values, head = ("exact", "int8") if name == HEAD_INT8 else (name, "exact")
        pushed = hub.push(delta, mask=mask, values=values, head=head)
        record = hub.version(f"{pushed.task}@{pushed.number}")
        predictor.load(hub.pull(record.reference))
        figures[name] = _figures(test, [answer.label for answer in predictor.classify(texts)])
        heads = sum(section.data.stored for section in record.sections if section.group == "head")
        stored[name] = {"head": heads, "rest": record.stored - heads}
    kept = [found.data.stored for found in hub.masks() if found.data is not None]
    frozen = delta.manifest.method.get("head_frozen")
    kept_still = frozen if isinstance(frozen, list) else []
    trained = sum(tensor.numel() for name, tensor in delta.head.items() if name not in kept_still)
    return {"test": figures, "bytes": stored, "mask_bytes": sum(kept), "head_trained": trained}


def _test_peft(baseline: peft_rows.Peft, test: Dataset) -> dict[str, Any]:
    texts = list(map(str, test.texts))
    figures = {"exact": _figures(test, baseline.classify(texts))}
    stored = {"exact": baseline.stored(), "bf16": baseline.stored(torch.bfloat16)}
    baseline.round_to_bf16()
    figures["bf16"] = _figures(test, baseline.classify(texts))
    sizes = {
        "trained": sum(parameter.numel() for parameter in baseline.trainee.adapter.values()),
        "head_trained": sum(parameter.numel() for parameter in baseline.trainee.head.values()),
    }
    return {"test": figures, "bytes": stored, "mask_bytes": 0, **sizes}


def _figures(test: Dataset, predicted: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    truth = list(test.labels)
    macro = f1_score(truth, list(predicted), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, list(predicted))), "macro_f1": float(macro)}


def _memory(device: str) -> int:
    """The most bytes held so far: of the device where that is a GPU, else of the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def main() -> None:
    told = json.load(sys.stdin)
    os.nice(10)
    torch.set_num_threads(told["threads"])
    try:
        found = measure(
            Job(**told["job"]), Protocol(**told["protocol"]), told["base"], Path(told["data"]), Path(told["work"])
        )
    except DeltahubError as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
