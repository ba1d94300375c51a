"""Fills a table of GLUE scores: each method on each task, the median of several seeds, as in Liao et al. (ACL 2023).

    python tools/glue/run.py --table main --base roberta-large --device cuda

Data and base come from the Hugging Face hub, or the data from --data. Every run is noted in OUT/results.jsonl as it
ends and never done twice; the same command goes on where an earlier one stopped, inside a run too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import glue_plan  # noqa: E402
import glue_tasks  # noqa: E402
from common import print_json, show  # noqa: E402
from glue_plan import Cell, Table  # noqa: E402

from deltahub.checkpoint import Base  # noqa: E402
from deltahub.digest import of_bytes  # noqa: E402
from deltahub.errors import DataError, DeltahubError, UsageError  # noqa: E402
from deltahub.mask import Mask  # noqa: E402
from deltahub.tuning.data import Dataset  # noqa: E402
from deltahub.tuning.methods import METHODS  # noqa: E402

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        table = glue_plan.read(options.config, options.table, options.tasks, options.methods)
        if options.data is None:
            glue_tasks.check_hub()
        elif not options.data.is_dir():
            raise DataError(f"no folder {options.data}", expected="<task>/train.jsonl and validation.jsonl in it")
        results = fill(table, Base.open(options.base), options.data, options.out, options.device)
    except DeltahubError as error:
        print(f"glue: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(f"glue: {error.strerror or error} ({error.filename})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("glue: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if options.json:
        print_json(results)
    else:
        print_table(table, results)
    return 0


def fill(table: Table, base: Base, folder: Path | None, out: Path, device: str) -> list[Result]:
    """All runs of a table, those of earlier calls from ``out`` / results.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    book = Book(out / "results.jsonl")
    masks: dict[str, Mask | None] = {}
    found: list[Result] = []
    for task in table.tasks:
        rows, validation = glue_tasks.load(task, folder)
        for cell in (cell for cell in table.cells if cell.task == task):
            if cell.method not in masks:
                masks[cell.method] = _mask(base, cell)
            run = Runner(base, masks[cell.method], rows, validation, out, device, book)
            found += _cell(cell, table.seeds, run)
    return found


def _cell(cell: Cell, seeds: Sequence[int], run: Callable[[Cell, float, int], Result]) -> Iterator[Result]:
    """The first seed with each learning rate, then the others with the one that did best."""
    tried = [run(cell, rate, seeds[0]) for rate in cell.rates]
    yield from tried
    best = max(tried, key=lambda result: -1e9 if result["score"] is None else result["score"])
    if best["score"] is not None:  # where every rate diverged there is no figure
        yield from (run(cell, best["lr"], seed) for seed in seeds[1:])


@dataclass(frozen=True)
class Runner:
    """Trains on one task's rows, or looks up what was trained before."""

    base: Base
    mask: Mask | None
    rows: Dataset
    validation: Dataset
    out: Path
    device: str
    book: Book

    def __call__(self, cell: Cell, rate: float, seed: int) -> Result:
        from deltahub.tuning.train import train

        settings = cell.run(rate, seed)
        identity = {
            "base": self.base.digest, "mask": self.mask.digest if self.mask else None, "task": cell.task,
            "method": cell.method, "settings": asdict(settings), "data": [_digest(self.rows), _digest(self.validation)],
        }  # fmt: skip
        key = of_bytes(json.dumps(identity, sort_keys=True).encode())
        if (known := self.book.get(key)) is not None:
            return known
        state = self.out / "state" / key[:16]
        state.mkdir(parents=True, exist_ok=True)
        result: Result = {
            "key": key, "base": self.base.id, "task": cell.task, "method": cell.method, "lr": rate, "seed": seed,
            "score": None,
        }  # fmt: skip
        try:
            trained = train(
                self.base, self.rows, self.validation, task=f"glue-{cell.task}", mask=self.mask, method=cell.method,
                settings=settings, state=state, resume=True, device=self.device,
            )  # fmt: skip
        except DataError as error:
            if error.hint != "lower the learning rates":
                raise
            result["error"] = str(error)  # one learning rate too large is not the end of the table
        else:
            stored = sum(raw.size for group in ("dense", "adapter") for raw in trained.delta.raw(group).values())
            result |= {
                "score": glue_tasks.TASKS[cell.task].score(trained.metrics),
                "stored": stored + (self.mask.k if self.mask else 0),
                "parameters": self.base.space.size,
                "seconds": round(trained.seconds, 1),
                "metrics": trained.metrics,
                "history": trained.history,
            }
        self.book.add(key, result)
        shutil.rmtree(state)
        return result


class Book:
    """Results by key in a file of JSON lines; a line that a crash cut short counts as never written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Result] = {}
        for line in path.read_text("utf-8").split("\n") if path.exists() else ():
            try:
                result = json.loads(line)
                self._found[result["key"]] = result
            except (ValueError, TypeError, KeyError):
                continue

    def get(self, key: str) -> Result | None:
        return self._found.get(key)

    def add(self, key: str, result: Result) -> None:
        self._found[key] = result
        with self._path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            whole = not size or (file.seek(size - 1) >= 0 and file.read(1) == b"\n")
            file.write(("" if whole else "\n").encode() + json.dumps(result).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def print_table(table: Table, results: Sequence[Result]) -> None:
    """Medians over the seeds at the best learning rate, with the mean of a line over its tasks."""
    lines = []
    for method in table.methods:
        mine = {task: _best([r for r in results if (r["task"], r["method"]) == (task, method)]) for task in table.tasks}
        medians = {task: statistics.median(r["score"] for r in runs) for task, runs in mine.items() if runs}
        share = max((r["stored"] / r["parameters"] for runs in mine.values() for r in runs), default=None)
        figures = [f"{medians[task]:.1f}" if task in medians else "-" for task in table.tasks]
        mean = f"{statistics.mean(medians.values()):.1f}" if len(medians) == len(table.tasks) else "-"
        lines.append([method, "-" if share is None else f"{share:.3%}", *figures, mean])
    count = len(table.seeds)
    title = (
        f"GLUE, validation sets, the median of {count} seeds; stored: numbers kept of the backbone, heads not counted"
    )
    show(title, ["method", "stored", *table.tasks, "mean"], lines)


def _best(results: Sequence[Result]) -> list[Result]:
    """The results at the learning rate that most seeds have: the one that was chosen; of equals the better."""
    scored = [result for result in results if result["score"] is not None]
    rates: dict[float, list[Result]] = {}
    for result in scored:
        rates.setdefault(result["lr"], []).append(result)
    return max(rates.values(), key=lambda runs: (len(runs), runs[0]["score"]), default=[])


def _mask(base: Base, cell: Cell) -> Mask | None:
    """Made once for all tasks and seeds."""
    recipe = METHODS[cell.method].mask
    try:
        if recipe == "lift":
            from deltahub.tuning.masks import lift_mask

            return lift_mask(base, **cell.mask)
        return Mask.build(base, recipe=recipe, **cell.mask) if recipe else None
    except TypeError as error:
        raise DataError(f"mask of {cell.method} ({error})", expected="arguments for its recipe") from None


def _digest(rows: Dataset) -> str:
    return of_bytes(json.dumps([rows.texts, rows.pairs, rows.labels]).encode())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", required=True, help="which table of the configuration to fill, such as main or small"
    )
    parser.add_argument("--base", default="roberta-large", help="folder or model id (default: roberta-large)")
    parser.add_argument(
        "--config", type=Path, default=HERE / "config.yaml", help="default: config.yaml beside this file"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="DIR/<task>/{train,validation}.jsonl, not the hub")
    parser.add_argument("--out", type=Path, default=Path("glue-out"), help="folder for results (default: glue-out)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these of the table")
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="only these of the table")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print every run as JSON instead of the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
