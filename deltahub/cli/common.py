"""What commands share: options, opening what the user names, tables, JSON, progress."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltahub.checkpoint import Base
    from deltahub.delta import Delta
    from deltahub.hub import Hub
    from deltahub.mask import Mask
    from deltahub.stores.cached import BlobCache
    from deltahub.stores.paced import Pace

Commands = Any
"""argparse's subparsers action, whose class is private."""
Run = Callable[[argparse.Namespace], None]


def command(commands: Commands, name: str, run: Run, summary: str, detail: str = "") -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {detail}".strip()
    )
    made.set_defaults(run=run, parser=made)
    return made


def output_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help=f"{what} to write")
    parser.add_argument("--force", action="store_true", help="replace a file of that name")
    parser.set_defaults(writes_file=True)


def check_output(options: argparse.Namespace) -> None:
    """Before any work: the folder is there, and no file is replaced without --force.

    Raises:
        UsageError: one of these does not hold.
    """
    from deltahub.errors import UsageError

    path: Path | None = getattr(options, "output", None)
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(
            f"-o {path}", expected="a folder that exists", got=f"no folder {path.parent}", hint="make it first"
        )
    if getattr(options, "writes_file", False):
        if path.exists() and not path.is_file():
            raise UsageError(f"-o {path}", expected="a file name", got="a folder" if path.is_dir() else "a device")
        if path.exists() and not options.force:
            raise UsageError(f"-o {path} exists", hint="give another name, or --force to replace it")


def hub_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub", metavar="URL", default=os.environ.get("DELTAHUB_HUB", "./hub"),
        help="where the hub is: a folder, s3://bucket/prefix or another URL (default: $DELTAHUB_HUB, then ./hub)",
    )  # fmt: skip
    cache_option(parser)


def signature_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require-signature", metavar="KEY", action="append", default=[],
        help="refuse a version that this public key, or one of a file of them, has not signed; may be repeated",
    )  # fmt: skip


def cache_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-cache", action="store_true", help="fetch from a remote hub also what `deltahub cache` has a copy of"
    )


def pace_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit-rate", metavar="RATE", help="bytes per second, both ways together: 500kB, 10MB (default: no limit)"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, help="requests under way at once (default: 8, and 1 in a folder)"
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")


def base_option(parser: argparse.ArgumentParser, *, required: bool = True, purpose: str = "") -> None:
    parser.add_argument(
        "--base",
        metavar="BASE",
        required=required,
        help=purpose or "the base model: folder, .safetensors file or model id",
    )
    revision_option(parser)


def revision_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of a BASE on the Hugging Face Hub")


def mask_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mask", metavar="FILE", type=Path, help="mask file (default: rebuilt from the recipe)")


def open_base(source: str, revision: str | None = None) -> Base:
    """The base, its digest taken (with a progress bar where it has not been before)."""
    from deltahub.checkpoint import Base

    cache = os.environ.get("DELTAHUB_CACHE")
    return Base.open(source, revision, cache=Path(cache) if cache else None)


def open_hub(options: argparse.Namespace, *, create: bool = False) -> Hub:
    """With what --require-signature says of it, where the command has that option."""
    from deltahub.hub import Hub
    from deltahub.signing import VerifyKey

    wanted = [key for source in getattr(options, "require_signature", ()) for key in VerifyKey.read(source)]
    hub = Hub.open(options.hub, create=create, cache=cache_of(options), pace=pace_of(options))
    return hub.requiring(wanted) if wanted else hub


def cache_of(options: argparse.Namespace) -> BlobCache | None:
    return None if options.no_cache else blob_cache()


def blob_cache() -> BlobCache | None:
    """In $DELTAHUB_CACHE, else in ~/.cache/deltahub; None with a limit of 0, or where there is no home.

    Raises:
        UsageError: $DELTAHUB_CACHE_LIMIT is no size, or $DELTAHUB_CACHE no folder.
    """
    from deltahub.errors import UsageError
    from deltahub.stores.cached import BlobCache
    from deltahub.stores.paced import bytes_of

    try:
        limit = bytes_of(os.environ.get("DELTAHUB_CACHE_LIMIT") or "10GB")
    except UsageError as error:
        raise UsageError(f"$DELTAHUB_CACHE_LIMIT: {error.problem}", expected=error.expected) from None
    try:
        folder = Path(os.environ.get("DELTAHUB_CACHE") or "~/.cache/deltahub").expanduser()
    except RuntimeError:
        if os.environ.get("DELTAHUB_CACHE"):
            raise UsageError("$DELTAHUB_CACHE", expected="a folder", got="the home of nobody here") from None
        return None
    return BlobCache(folder, limit, warn=words) if limit else None


def pace_of(options: argparse.Namespace) -> Pace | None:
    """What --limit-rate and --jobs say; None where the command has no such options, or neither is given."""
    from deltahub.errors import UsageError
    from deltahub.stores.paced import Pace, bytes_of

    rate, jobs = getattr(options, "limit_rate", None), getattr(options, "jobs", None)
    if rate is None and jobs is None:
        return None
    try:
        return Pace(None if rate is None else bytes_of(rate), jobs)
    except UsageError as error:
        option = "--jobs" if rate is None or (jobs is not None and jobs < 1) else "--limit-rate"
        raise UsageError(f"{option}: {error.problem}", expected=error.expected, got=error.got) from None


def load_mask(path: Path | None) -> Mask | None:
    from deltahub.mask import Mask

    return None if path is None else Mask.load(path)


def load_delta(source: str, options: argparse.Namespace) -> Delta:
    """A ``.delta`` file where there is one of that name, else a task of the hub."""
    from deltahub.delta import Delta
    from deltahub.errors import UsageError

    if Path(source).exists() or source.endswith(".delta") or os.sep in source:
        if options.require_signature:
            raise UsageError(
                f"--require-signature: {source} is a file, which has no signature", expected="a task of the hub"
            )
        return Delta.load(source)
    return open_hub(options).pull(source)


def find_mask(options: argparse.Namespace, delta: Delta) -> Mask | None:
    """--mask, else the hub's where only a hub can have it; None leaves the recipe to rebuild it."""
    from deltahub.errors import HubError
    from deltahub.mask import Mask

    ref = delta.manifest.mask
    if options.mask is not None or ref is None or ref.rebuildable:
        return load_mask(options.mask)
    with contextlib.suppress(HubError):  # no hub, or not this mask in it: the recipe's own refusal says what to do
        found = open_hub(options).mask(ref.digest)
        return found if isinstance(found, Mask) else None
    return None


def words(text: str) -> None:
    """A line for people; a progress bar that is being shown moves below it."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as they need; numbers to the right."""
    cells = [list(head)] + [[_cell(item) for item in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numeric = [
        all(row[column][:1].isdigit() or row[column] in ("", "-") or row[column][:1] in "-+" for row in cells[1:])
        for column in range(len(head))
    ]
    for row in cells:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _cell(item: object) -> str:
    if item is None:
        return "-"
    if isinstance(item, int) and not isinstance(item, bool):
        return f"{item:,}"
    return printable(str(item))


def printable(text: str) -> str:
    """Control characters as escapes: names and labels in a file must not steer a terminal, nor turn its lines."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: ascii(found.group())[1:-1], text)


def count(number: int, thing: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people: ``1.4 MB`` is 1,400,000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextlib.contextmanager
def progress(title: str, unit: str = "B") -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr when someone is looking, nothing otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, unit_scale=True, leave=False, delay=0.3, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
