"""`deltahub report` and `deltahub card`: what a hub saves, and a page about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from deltahub.report import Report


def add(commands: common.Commands) -> None:
    report = common.command(
        commands, "report", _report, "print the bytes of every task, and what the hub saves",
        "Against a full checkpoint per task, fp16 values with int32 indices, and a PEFT LoRA file of rank 8.",
    )  # fmt: skip
    common.base_option(report, required=False, purpose="the base of the tasks: adds what LoRA would take")
    common.hub_option(report)
    common.json_option(report)
    report.add_argument("--html", metavar="FILE", type=Path, help="also write the report as one HTML page")

    card = common.command(
        commands, "card", _card, "write a page about the hub: tasks, metrics, savings, how to use them",
        "A hub at hf:// keeps its own page up to date with every push.",
    )  # fmt: skip
    common.hub_option(card)
    card.add_argument(
        "-o", "--output", metavar="FILE", type=Path,
        help="Markdown file; of one that is there, all outside of deltahub's marks stays (default: print it)",
    )  # fmt: skip


def _report(options: argparse.Namespace) -> None:
    from deltahub.files import write_atomic
    from deltahub.report import html, report

    base = common.open_base(options.base, options.revision) if options.base else None
    found = report(common.open_hub(options), base)
    if options.html:
        write_atomic(options.html, [html(found).encode()])
        common.words(f"wrote {options.html}")
    if options.json:
        common.print_json(asdict(found))
    else:
        _print(found)


def _card(options: argparse.Namespace) -> None:
    from deltahub.card import text
    from deltahub.files import write_atomic

    hub = common.open_hub(options)
    if options.output is None:
        print(text(hub), end="")
        return
    old = _page_at(options.output).decode(errors="surrogateescape") if options.output.exists() else ""
    write_atomic(options.output, [text(hub, old).encode(errors="surrogateescape")])
    print(options.output)


def _page_at(path: Path) -> bytes:
    """Raises FormatError for what is no page: a device may have no end."""
    from deltahub.card import MOST_PAGE
    from deltahub.errors import FormatError
    from deltahub.tensorfile import open_regular

    with open(open_regular(path), "rb") as file:
        data = file.read(MOST_PAGE + 1)
    if len(data) > MOST_PAGE:
        raise FormatError(f"{path}", expected=f"a page of at most {MOST_PAGE:,} bytes", hint="give another -o")
    return data


def _print(found: Report) -> None:
    size = common.size
    rows: list[list[object]] = [
        [
            row.version, size(row.values), size(row.dense), size(row.adapter), size(row.head), size(row.record), "",
            size(row.stored), size(row.alone),
            f"{row.stored / row.full_checkpoint:.3%}" if row.full_checkpoint else None, row.lossy,
        ]
        for row in found.tasks
    ]  # fmt: skip
    rows.append(["whole hub", *(size(part) for part in found.parts.values()), size(found.total), "", "", ""])
    common.print_table(
        ["version", "values", "dense", "adapter", "head", "record", "index", "stored", "alone", "of full", "lossy"],
        rows,
    )
    if not found.tasks:
        return
    versions, tasks = common.count(len(found.tasks), "version"), common.count(found.names, "task")
    print()
    ways = [["this hub", size(found.total), "-", size(found.total / len(found.tasks))]]
    ways += [
        [peer.name, size(peer.total), f"{peer.total / found.total:.1f} x", size(peer.mean_task)] for peer in found.peers
    ]
    common.print_table([f"{versions} of {tasks}", "bytes", "against the hub", "one version"], ways)
    print()
    head = [f"hub, {coding.name}" for coding in found.codings] + [peer.name for peer in found.peers]
    common.print_table(
        ["projected", *head],
        ([f"{p.tasks:,} tasks", *(size(n) for n in [*p.hub.values(), *p.peers.values()])] for p in found.projections),
    )
    for mask in found.masks:
        stored = f"{mask.stored:,} bytes stored" if mask.stored else "nothing stored, its recipe rebuilds it"
        print(
            f"\nmask {mask.digest[:16]}: {mask.k:,} of {mask.n:,} positions; {stored} "
            f"(a list of random positions takes {mask.floor:,} bytes at least)"
        )
    if not any(peer.name.startswith("PEFT") for peer in found.peers):
        common.words("give --base to compare with full checkpoints and LoRA")
