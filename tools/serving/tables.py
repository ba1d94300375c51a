"""What each part found, as tables for people; what was expected stands beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from serving import right
from serving.checking import TOLERANCE

Found = Mapping[str, Any]


def show(part: str, found: Found) -> None:
    """Prints a part's tables, and whatever was wrong."""
    _TABLES[part](found)
    if part != "right":
        print(
            f"{found['texts']:,} answers compared: {found['wrong']} wrong, {found['equal_to_the_bit']:,} equal to the "
            f"bit, {found['alone_in_their_pass']:,} alone in their pass, "
            f"largest difference {found['largest_difference']:.2g}"
        )
    for line in found["examples"]:
        print(f"  WRONG {line}")


def _right(found: Found) -> None:
    rows = [
        ["requests ended", "all 200", ", ".join(f"{count:,} {how}" for how, count in found["outcomes"].items())],
        ["lost, but for 429 and 503 with retry-after", "0", found["lost"]],
        ["replicas killed; that answered", "3; 6 and new ones", f"{found['killed']}; {found['replicas']}"],
        ["changes meanwhile", "", ", ".join(f"{count} {what}" for what, count in found["changes"].items())],
        ["changes that failed", "0", found["changes_that_failed"]],
        ["loads, swaps", "", f"{found['counters']['loads']:,.0f}, {found['counters']['swaps']:,.0f}"],
        ["answers from mixed passes; after a swap", "both many", f"{found['mixed']:,}; {found['swapped']:,}"],
        ["answers compared; alone in their pass", "", f"{found['texts']:,}; {found['alone_in_their_pass']:,}"],
        ["wrong", "0", found["wrong"]],
        ["equal to the bit", "all that were alone", found["equal_to_the_bit"]],
        ["largest difference", f"at most {TOLERANCE:g}", f"{found['largest_difference']:.2g}"],
        ["... and smallest if another task's values answered", "above 1e-3", f"{found['seen']:.2g}"],
        ["words with two equally probable labels", "a few", found["ties"]],
        ["versions that the name could not mean", "0", found["impossible"]],
        ["oldest meaning that was answered", f"{right.REFRESH + right.SLACK:g} s", f"{found['stalest_seconds']:.1f} s"],
    ]  # fmt: skip
    common.show(f"right: {found['requests']:,} requests, {found['clients']} clients, {found['tasks']} tasks",
                ["", "expected", "measured"], rows)  # fmt: skip
    for line in (*found["failures"], *found["impossible_versions"], *found["troubles"]):
        print(f"  WRONG {line}")


def _dedicated(found: Found) -> None:
    rows = [[*_cells(row), _times(row, "rate"), _times(row, "p50"), _times(row, "p99")] for row in found["rows"]]
    common.show(
        "dedicated: milliseconds, medians of the rounds; ratios to the dedicated model, round by round\n"
        "expected: one task, throughput at least 0.95 and p99 at most 1.05; Zipf at least 0.8, uniform at least 0.75",
        [*_HEAD, "x throughput", "x p50", "x p99"], rows,
    )  # fmt: skip


def _multiplexing(found: Found) -> None:
    rows = [[*_cells(row), _times(row, "rate")] for row in found["rows"]]
    common.show(
        f"multiplexing: peer with room for {found['room_for_models']} models; milliseconds, medians\n"
        "expected: at least 5 times the throughput of the peer",
        [*_HEAD, "x peer"], rows,
    )  # fmt: skip


def _cliff(found: Found) -> None:
    rows = [
        [*_cells(row), _times(row, "rate"), _times(row, "p50"), f"{1e3 / row['rate']:.2f}", f"{row['loads']:.2f}"]
        for row in found["rows"]
    ]
    common.show(
        "cliff: uniform traffic; milliseconds, medians; ratios to the first\n"
        f"expected: 1 where all are cached, else one load more a request at most, which took {found['load_ms']:.1f} ms",
        [*_HEAD, "x throughput", "x p50", "ms a request", "loads a request"], rows,
    )  # fmt: skip


def _swap(found: Found) -> None:
    rows = [
        [f"{row['threads']} threads", f"{row['swapped']:,} of {row['requests']:,}", f"{row['swap_ms']:.2f}",
         f"{row['forward_ms']:.2f}", f"{row['ratio']:.1%}"]
        for row in found["rows"]
    ]  # fmt: skip
    common.show("swap: two tasks in turn, one client; milliseconds, medians; expected: below 10 %",
                ["torch", "swapped", "swap", "forward", "swap / forward"], rows)  # fmt: skip


def _start(found: Found) -> None:
    rows = [[f"{tasks:,} tasks", f"{took:.1f} s"] for tasks, took in zip(found["tasks"], found["seconds"], strict=True)]
    common.show(
        f"start: `deltahub serve` to its first answer, median of {found['rounds']} starts; "
        f"ratio {found['ratio']:.2f}, expected 1",
        ["hub", "first answer"], rows,
    )  # fmt: skip


_TABLES: Mapping[str, Callable[[Found], None]] = {
    "right": _right, "dedicated": _dedicated, "multiplexing": _multiplexing, "cliff": _cliff, "swap": _swap,
    "start": _start,
}  # fmt: skip
_HEAD = ("clients", "what", "answers/s", "p50", "p99", "queue", "swap", "forward", "other", "rows")


def _cells(row: Found) -> list[str]:
    split = [_ms(row[name]) for name in ("p50", "p99", "queue", "swap", "run", "other")]
    rows = "" if row["rows"] is None else f"{row['rows']:.1f}"
    return [f"{row['clients']}", row["workload"], f"{row['rate']:.1f}", *split, rows]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _times(row: Found, what: str) -> str:
    found = row.get(f"{what}_ratio")
    return "" if found is None else f"{found:.2f}"
