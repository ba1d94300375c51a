"""Prints a file of results as Markdown tables. What is missing is said, and never averaged over."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from deltahub.errors import DeltahubError
from quality.results import HEAD_INT8, ROUNDINGS, Results, read
from quality.summary import Line, accuracy, lines, missing, relative_step, stored

NONE = "–"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="what run.py wrote")
    try:
        print(text(read(parser.parse_args(arguments).file)))
    except DeltahubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def text(results: Results) -> str:
    """All tables, best row first."""
    found = sorted(lines(results), key=lambda line: -(line.mean(accuracy()) or -1.0))
    if not found:
        return "no runs yet"
    parts = [_protocol(results, found[0]), _overview(found), _tasks(results, found), _rounded(found), _bytes(found)]
    return "\n\n".join([*parts, _rates(found), *_notes(results, found)])


def _protocol(results: Results, line: Line) -> str:
    told = results.protocol
    cut = f"the first {told.rows:,} training rows of a shuffle at most" if told.rows else "all training rows"
    held = f", {told.held_out:,} held-out rows at most" if told.held_out else ""
    rates = (
        f"learning rates searched with seed {told.first_seed} on validation" if told.search else "rates not searched"
    )
    others = [task for task in results.tasks if task not in line.tasks]
    without = f"; no runs yet on {', '.join(others)}" if others else ""
    seeds = ", ".join(map(str, line.seeds))
    return (
        f"Base {told.base[:16]}, {told.epochs} epochs, {cut}{held}, batches of {told.batch_size}, {told.device}, "
        f"seeds {seeds}; {rates}. Means over {len(line.tasks)} tasks: {', '.join(line.tasks)}{without}."
    )


def _overview(found: Sequence[Line]) -> str:
    full = next((line for line in found if line.row.name == "full"), None)
    rows = []
    for line in found:
        step, memory = relative_step(line, full), line.mean(lambda run: run["peak_memory"] - run["memory_before"])
        rows.append([
            line.row.name, line.row.about, _share(line.mean(accuracy()), line.spread(accuracy())),
            _share(line.mean(accuracy(what="macro_f1"))), _count(line.mean(lambda run: run["trained"])),
            *(_kilobytes(line.mean(stored(rounding, "rest"))) for rounding in ROUNDINGS),
            NONE if step is None else f"{step:.2f} ×", NONE if memory is None else f"{memory / 1e6:,.0f} MB",
        ])  # fmt: skip
    head = [
        "method",
        "trains",
        "accuracy",
        "macro F1",
        "parameters",
        *(f"bytes {r}" for r in ROUNDINGS),
        "step",
        "memory",
    ]
    return _markdown("Accuracy on held-out rows; parameters and stored bytes of a task without its head", head, rows)


def _tasks(results: Results, found: Sequence[Line]) -> str:
    tasks = found[0].tasks
    rows = [[line.row.name, *(_cell(line, task) for task in tasks)] for line in found]
    rows.append(["largest class", *(_largest(found, task) for task in tasks)])
    return _markdown(
        "Accuracy by task", ["method", *(f"{task} ({results.tasks[task]:,} rows)" for task in tasks)], rows
    )


def _rounded(found: Sequence[Line]) -> str:
    names = (*ROUNDINGS, HEAD_INT8)
    rows = [[line.row.name, *(_share(line.mean(accuracy(name))) for name in names)] for line in found]
    return _markdown("Accuracy of what a hub gives back, by rounding", ["method", *names], rows)


def _bytes(found: Sequence[Line]) -> str:
    rows = [
        [
            line.row.name, _kilobytes(line.mean(stored("exact", "head"))),
            _kilobytes(line.mean(stored(HEAD_INT8, "head"))), _kilobytes(line.mean(lambda run: run["mask_bytes"])),
        ]
        for line in found
    ]  # fmt: skip
    return _markdown("Bytes of the head, and of a mask that no recipe rebuilds (once a hub)",
                     ["method", "head", HEAD_INT8, "mask"], rows)  # fmt: skip


def _rates(found: Sequence[Line]) -> str:
    rows = [[line.row.name, *(_rate(line, task) for task in line.tasks)] for line in found]
    return _markdown("Learning rates chosen (* the lowest or highest tried)", ["method", *found[0].tasks], rows)


def _notes(results: Results, found: Sequence[Line]) -> list[str]:
    notes = [f"- {line.row.name} misses {'; '.join(gaps)}" for line in found if (gaps := missing(line))]
    notes += [f"- {job} failed: {error}" for job, error in results.failed.items()]
    notes += [f"- {job} diverged in step {run['diverged']}" for job, run in results.runs.items() if run.get("diverged")]
    return ["\n".join(["Missing or failed:", "", *notes])] if notes else []


def _cell(line: Line, task: str) -> str:
    here, all_ = len(line.runs[task]), len(line.seeds)
    shown = _share(line.of_task(task, accuracy()))
    if task in line.searching:
        return f"{shown} (searching)" if here else "searching"
    return shown if here == all_ else f"{shown} ({here} of {all_})" if here else "missing"


def _largest(found: Sequence[Line], task: str) -> str:
    return _share(
        next((v for line in found if (v := line.of_task(task, lambda run: run["majority"])) is not None), None)
    )


def _rate(line: Line, task: str) -> str:
    return f"{line.rates[task]:.0e}{'*' if task in line.at_end else ''}" if task in line.rates else NONE


def _share(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _kilobytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 1000:,.1f} kB"


def _markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lined = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{title}:", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lined])


if __name__ == "__main__":
    sys.exit(main())
