"""The command line: parses, calls one library function, prints. Data goes to stdout, words and progress to stderr."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from deltahub import __version__
from deltahub.cli import cache, common, hubs, masks, predicting, reports, serving, signing, tasks, training
from deltahub.errors import DeltahubError, UsageError

_GROUPS = (masks, training, predicting, serving, tasks, hubs, signing, cache, reports)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="deltahub",
        description="Store, version, share and use many fine-tuned tasks of one base model.",
        epilog="Exit codes: 0 done, 1 refused or failed (one line says why), 2 wrong usage, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"deltahub {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in _GROUPS:
        group.add(commands)
    return top


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """As parse_args, but texts may follow options, and the command's own usage is shown for what it does not know."""
    options, rest = parser().parse_known_args(arguments)
    if rest and hasattr(options, "texts") and not any(item.startswith("-") for item in rest):
        options.texts += rest
    elif rest:
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _mend_streams() -> None:
    """Closed streams lead nowhere instead of to errors; what the terminal cannot show is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (lives as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    _mend_streams()
    try:
        options = _parse(arguments)
        common.check_output(options)
        options.run(options)
        sys.stdout.flush()
    except DeltahubError as error:
        print(f"deltahub: {common.printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("deltahub: interrupted; nothing was half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: no complaint at exit
        return 1
    except (OSError, MemoryError) as error:
        reason = "out of memory" if isinstance(error, MemoryError) else str(error.strerror or error)
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        print(f"deltahub: {reason}{where}", file=sys.stderr)
        return 1
    return 0
