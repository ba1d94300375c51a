"""deltahub cache: what was fetched from remote hubs and is kept on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from deltahub.cli import common


def add(commands: common.Commands) -> None:
    made = common.command(
        commands, "cache", _cache, "show or empty the folder with what remote hubs gave",
        "It is in $DELTAHUB_CACHE (default: ~/.cache/deltahub) and holds at most $DELTAHUB_CACHE_LIMIT "
        "(default: 10GB; 0 for none); what was not read for the longest time goes first.",
    )  # fmt: skip
    made.add_argument("--clear", action="store_true", help="remove all of it; nothing in any hub changes")
    common.json_option(made)


def _cache(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError

    cache = common.blob_cache()
    if cache is None:
        raise UsageError("there is no cache", hint="set $DELTAHUB_CACHE to a folder and $DELTAHUB_CACHE_LIMIT above 0")
    before = cache.clear() if options.clear else None
    found = cache.usage()
    if options.json:
        common.print_json(asdict(found))
    else:
        row = [found.entries, found.unfinished, common.size(found.bytes), common.size(found.limit_bytes), found.folder]
        common.print_table(["blobs", "unfinished", "size", "limit", "folder"], [row])
    if before is not None:
        removed = before.entries + before.unfinished - found.entries - found.unfinished
        common.words(f"{common.count(max(0, removed), 'file')} removed, {common.size(before.bytes - found.bytes)}")
