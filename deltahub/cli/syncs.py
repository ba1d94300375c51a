"""deltahub sync: from one hub to another."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.stores.paced import Pace
    from deltahub.syncing import SyncReport


def add(commands: common.Commands) -> None:
    made = common.command(
        commands, "sync", _sync, "copy what one hub has and another lacks, every byte verified",
        "Versions keep number and digest; tags follow. Only what is missing travels; a run that was cut off goes on. "
        "Nothing is removed from TO.",
    )  # fmt: skip
    made.add_argument(
        "source", metavar="FROM", help="the hub to copy from: a folder, s3://bucket/prefix or another URL"
    )
    made.add_argument("target", metavar="TO", help="the hub to copy to; made where there is none")
    made.add_argument(
        "--task", metavar="GLOB", action="append", default=[], help="only tasks of that name; may be repeated"
    )
    made.add_argument("--newest", action="store_true", help="only the newest version of each task, and tags for it")
    made.add_argument("--no-tags", action="store_true", help="leave the tags in TO as they are")
    made.add_argument(
        "--check", action="store_true", help="also read what looks alike in both, and heal what is damaged in TO"
    )
    made.add_argument("--dry-run", action="store_true", help="only say what would be copied")
    common.cache_option(made)
    common.pace_options(made)
    common.json_option(made)


def _sync(options: argparse.Namespace) -> None:
    from deltahub.errors import HubError
    from deltahub.hub import Hub
    from deltahub.syncing import sync

    cache, pace = common.cache_of(options), common.pace_of(options)
    source = Hub.open(options.source, create=False, cache=cache, pace=pace)
    with common.progress("sync") as show:
        report = sync(
            source, _target(options, pace), options.task, newest=options.newest, tags=not options.no_tags,
            check=options.check, dry_run=options.dry_run, progress=show,
        )  # fmt: skip
    _show(report, options)
    if report.failed:
        raise HubError(
            f"not all of {options.source} was copied: {len(report.failed)} left out, all others are there",
            hint="`deltahub verify` names what is wrong there; mend it and run the command again",
        )


def _target(options: argparse.Namespace, pace: Pace | None) -> Hub:
    """In a dry run nothing is made: a hub that is not there yet is as one that has nothing."""
    from deltahub.errors import NotFoundError
    from deltahub.hub import Hub
    from deltahub.stores import MemoryStore

    try:
        return Hub.open(options.target, create=not options.dry_run, pace=pace)
    except NotFoundError:
        return Hub(MemoryStore("nothing"))


def _show(report: SyncReport, options: argparse.Namespace) -> None:
    for failure in report.failed:
        common.words(common.printable(f"{failure.what} is left out: {failure.problem}"))
    if options.json:
        common.print_json(asdict(report))
    else:
        for copy in report.copied:
            told = "" if copy.target == copy.source else f" as {copy.target}: that number was taken"
            print(f"{copy.source} {copy.digest}{told}")
        for tag in report.tags:
            print(tag)
        for signature in report.signatures:
            print(signature)
    for reference in report.unsigned:
        common.words(f"{reference} has signatures that stay behind: they do not hold for its number or record there")
    for reference in report.removed:
        common.words(f"{reference} was removed in {options.target}, and stays so")
    verb = "would be copied" if options.dry_run else "copied"
    common.words(
        f"{common.count(len(report.copied), 'version')} and {common.count(len(report.tags), 'tag')} {verb}, "
        f"{common.size(report.bytes)} in {common.count(report.blobs, 'blob')}; "
        f"{common.count(report.present, 'version')} there already"
    )
