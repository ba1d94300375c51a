"""`deltahub serve`."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from deltahub.cli import common
from deltahub.errors import DeltahubError, UsageError

_SECRETS = ("DELTAHUB_API_KEYS", "DELTAHUB_ADMIN_KEYS")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def add(commands: common.Commands) -> None:
    serve = common.command(
        commands, "serve", _serve, "answer HTTP requests for every task of a hub, from one resident base",
        "Prints its URL once it answers. Ctrl-C or SIGTERM stops it: requests under way are answered, new ones get "
        "503, and the exit code is 0; a second signal stops it at once. New versions and moved tags are served "
        "without a restart. Needs `pip install 'deltahub[serve]'`.",
    )  # fmt: skip
    _what(serve.add_argument_group("what is served"))
    _where(serve.add_argument_group("where it listens, and who may ask"))
    _how(serve.add_argument_group("how it runs"))


def _what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--hub", metavar="URL", help="where the hub is (default: $DELTAHUB_HUB, then ./hub)")
    group.add_argument("--base", metavar="BASE", help="the base model: folder, .safetensors file or model id")
    group.add_argument("--revision", help="branch, tag or commit of a BASE on the Hugging Face Hub")
    group.add_argument("--base-name", metavar="NAME", help="what clients call the base (default: its id)")
    group.add_argument("--mask", metavar="MASK", help="file or digest, where the hub has several masks of the base")
    group.add_argument("--default-task", metavar="TASK", help="answers requests that name no task (default: none)")
    group.add_argument(
        "--split", dest="splits", metavar="TASK@N=SHARE,...",
        help="shares of a task's versions for requests that name none: sst2@3=0.9,sst2@4=0.1",
    )  # fmt: skip
    group.add_argument(
        "--require-signature", metavar="KEY", action="append",
        help="serve only versions that this public key, or one of a file of them, has signed; may be repeated",
    )  # fmt: skip
    group.add_argument("--prefetch", metavar="TASK", nargs="+", action="extend", help="load before the first request")
    group.add_argument("--pin", dest="pinned", metavar="TASK", nargs="+", action="extend", help="load and keep")


def _where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    group.add_argument("--port", type=int, metavar="N", help="port; 0 takes a free one (default: 8000)")
    group.add_argument(
        "--api-keys", dest="api_keys_file", metavar="FILE", type=Path,
        help="bearer keys, one a line (default: $DELTAHUB_API_KEYS, separated by commas; then anybody may ask)",
    )  # fmt: skip
    group.add_argument(
        "--admin-keys", dest="admin_keys_file", metavar="FILE", type=Path,
        help="keys for the admin routes (default: $DELTAHUB_ADMIN_KEYS; then these are shut)",
    )  # fmt: skip


def _how(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="torch device (default: auto, a GPU where there is one)")
    group.add_argument("--threads", type=int, metavar="N", help="torch threads of a replica (default: its CPUs)")
    group.add_argument("--replicas", type=int, metavar="N", help="processes that hold the base (default: 1)")
    group.add_argument(
        "--gateways", type=int, metavar="N",
        help="processes that route requests to replicas (default: 0 for one replica, else 1)",
    )  # fmt: skip
    group.add_argument(
        "--cpus", type=float, metavar="N", help="CPUs of a replica (default: those of this machine, shared)"
    )
    group.add_argument("--gpus", type=float, metavar="N", help="GPUs of a replica (default: 1 or a share, if any)")
    group.add_argument(
        "--cache", dest="cache_bytes", metavar="SIZE", help="memory of a replica for loaded tasks (default: 1GiB)"
    )
    group.add_argument(
        "--mixing", choices=("auto", "always", "never"),
        help="share forward passes among tasks that wait at the same time: where that is cheaper (auto, the default), "
        "wherever they can (always), or never",
    )  # fmt: skip
    group.add_argument("--refresh", metavar="S", help="seconds until a push or a moved tag is seen (default: 10)")
    group.add_argument("--timeout", metavar="S", help="seconds that a request may take (default: 30)")
    group.add_argument(
        "--config", metavar="FILE", type=Path,
        help="a Ray Serve configuration (YAML) in place of the options above but --host and --port; SIGHUP reads its "
        "user_config again",
    )  # fmt: skip
    group.add_argument("--address", metavar="RAY", help="join this Ray cluster (default: start one for this process)")


_ELSEWHERE = ("host", "port", "config", "address", "run", "parser")


def _serve(options: argparse.Namespace) -> None:
    arguments = _arguments(options)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "20")  # of three checks; 5 are few on a busy machine
    try:
        from deltahub_serve.command import run
        from deltahub_serve.service import Launch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("deltahub", "torch"):
            raise
        raise DeltahubError(
            f"deltahub serve needs {error.name}, which is not installed", hint="pip install 'deltahub[serve]'"
        ) from None
    environment = dict(os.environ)
    for name in _SECRETS:  # else every process of Ray would have them in its environment
        os.environ.pop(name, None)
    launch = Launch(arguments, options.config, options.host, options.port, options.address, environment)
    run(launch, say=lambda line: common.words(common.printable(line)), show=lambda url: print(url, flush=True))


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of `deltahub_serve.app.build`'s arguments.

    Raises:
        UsageError: a configuration and options beside it; no base; a port or a size that is none.
    """
    given = {name: value for name, value in vars(options).items() if name not in _ELSEWHERE and value is not None}
    if options.port is not None and not 0 <= options.port <= 65535:
        raise UsageError("--port", expected="0 to 65535", got=options.port)
    if options.config is not None:
        if given:
            names = ", ".join(sorted(given))
            raise UsageError(f"--config and {names}", hint="say it in the file: --config takes only --host and --port")
        return {}
    if "base" not in given:
        raise UsageError("no base", expected="--base BASE, or --config FILE")
    given.setdefault("hub", os.environ.get("DELTAHUB_HUB", "./hub"))
    if "cache_bytes" in given:
        given["cache_bytes"] = _bytes(given["cache_bytes"])
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if not found:
        raise UsageError("--cache", expected="a size such as 500MB or 1GiB", got=text)
    return int(float(found[1]) * _UNITS[found[2] or ""])
