"""`deltahub predict`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltahub.answers import Answer

_LOCAL = ("base", "revision", "mask", "batch_size", "hub", "no_cache", "require_signature")
"""Options that mean nothing to a server."""


def add(commands: common.Commands) -> None:
    predict = common.command(
        commands, "predict", _predict, "ask a task about texts, in this process or on a server",
        "Answers are labels, numbers, labels of words or embeddings, as the task's kind has it. "
        "Texts come from the arguments, or as plain lines (not JSON) from standard input. "
        "Either --base or --url is needed.",
    )  # fmt: skip
    predict.add_argument(
        "task", metavar="TASK|FILE", help="a task of the hub (TASK, TASK@N, TASK:TAG) or a .delta file"
    )
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="texts (default: lines of standard input)")
    predict.add_argument(
        "--pair", metavar="TEXT", dest="pairs", action="append",
        help="the second text, for a task that compares two; once per TEXT (on standard input: TEXT<tab>TEXT)",
    )  # fmt: skip
    predict.add_argument("--url", metavar="URL", help="ask this deltahub server instead, such as http://127.0.0.1:8000")
    predict.add_argument(
        "--api-key-file", metavar="FILE", type=Path,
        help="with --url: a file whose first line is the server's key (default: $DELTAHUB_API_KEY)",
    )  # fmt: skip
    common.base_option(predict, required=False, purpose="the base that the task was made from")
    common.mask_option(predict)
    predict.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per pass (default: 32)")
    common.signature_option(predict)
    common.hub_option(predict)
    common.json_option(predict)


def _predict(options: argparse.Namespace) -> None:
    texts, pairs, kind, found = _ask_here(options) if options.url is None else _ask_server(options)
    if kind == "embeddings":
        common.print_json([item.as_dict()["embedding"] for item in found])
    elif options.json:
        asked = [
            {"text": text} if pairs is None else {"text": text, "pair": pairs[row]} for row, text in enumerate(texts)
        ]
        common.print_json([question | item.as_dict() for question, item in zip(asked, found, strict=True)])
    else:
        shown = texts if pairs is None else [f"{text} | {pair}" for text, pair in zip(texts, pairs, strict=True)]
        _print_table(shown, found)


def _ask_here(options: argparse.Namespace) -> tuple[list[str], list[str] | None, str, Sequence[Answer]]:
    """Texts, second texts, kind of the task, answers."""
    from deltahub.errors import UsageError
    from deltahub.predict import Predictor

    if options.api_key_file is not None:
        raise UsageError("--api-key-file is for a server", hint="give its --url too, or leave the key out")
    if options.base is None:
        raise UsageError("predict", expected="--base BASE, or --url URL of a server", got="neither")
    delta = common.load_delta(options.task, options)
    texts, pairs = _questions(options, delta.task, delta.manifest.inputs.get("pair") is True)
    if options.batch_size < 1:
        raise UsageError("--batch-size", expected="1 or more", got=options.batch_size)
    predictor = Predictor(common.open_base(options.base, options.revision), common.find_mask(options, delta))
    predictor.load(delta)
    return texts, pairs, delta.manifest.kind, predictor.predict(texts, pairs, batch_size=options.batch_size)


def _ask_server(options: argparse.Namespace) -> tuple[list[str], list[str] | None, str, Sequence[Answer]]:
    """As `_ask_here`."""
    from deltahub.client import Client
    from deltahub.errors import UsageError

    if given := [name for name in _LOCAL if getattr(options, name) != options.parser.get_default(name)]:
        raise UsageError(f"--{given[0].replace('_', '-')} means nothing to a server", hint="leave it out, or --url")
    if options.task.endswith(".delta"):
        raise UsageError(
            f"{options.task} is a file", expected="a task that the server has", hint="push it, or give --base"
        )
    with Client(options.url, _api_key(options.api_key_file)) as client:
        task = client.task(options.task)
        texts, pairs = _questions(options, task.name, task.pair)
        reply = client.predict(options.task, texts, pairs)
    return texts, pairs, reply.kind, reply.answers


def _api_key(path: Path | None) -> str | None:
    """The first line of the file that is no comment, else the environment's; None where there is none."""
    from deltahub.errors import UsageError

    if path is None:
        return os.environ.get("DELTAHUB_API_KEY") or None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path} cannot be read ({error})") from None
    if not (keys := [line for line in lines if line and not line.startswith("#")]):
        raise UsageError(f"--api-key-file {path} has no key", expected="one in a line")
    return keys[0]


def _questions(options: argparse.Namespace, task: str, pair: bool) -> tuple[list[str], list[str] | None]:
    """The texts and, for a task that compares two, the second ones.

    Raises:
        UsageError: no text, standard input that is no UTF-8, or second texts that are missing, too many or not wanted.
    """
    from deltahub.errors import UsageError

    texts: list[str] = options.texts or _lines()
    pairs: list[str] | None = options.pairs
    if not texts:
        raise UsageError("no text", expected="arguments, or lines on standard input")
    if not pair:
        if pairs is not None:
            raise UsageError(f"--pair: {task} takes single texts", hint="leave --pair out")
        return texts, None
    if pairs is None and not options.texts:
        split = [line.split("\t") for line in texts]
        if wrong := [number for number, parts in enumerate(split, start=1) if len(parts) != 2]:
            raise UsageError(
                f"line {wrong[0]}: {task} compares two texts", expected="TEXT<tab>TEXT",
                got=f"{len(split[wrong[0] - 1]) - 1} tabs",
            )  # fmt: skip
        return [first for first, _ in split], [second for _, second in split]
    if pairs is None or len(pairs) != len(texts):
        raise UsageError(f"{task} compares two texts", expected=f"--pair TEXT {len(texts)} times", got=len(pairs or []))
    return texts, pairs


def _lines() -> list[str]:
    """Standard input, a text a line."""
    from deltahub.errors import UsageError

    try:
        return sys.stdin.buffer.read().decode().splitlines() if sys.stdin else []
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 ({error.reason} at byte {error.start})") from None


def _print_table(texts: Sequence[str], found: Sequence[Answer]) -> None:
    from deltahub.answers import LabelScores, Prediction, Score, WordLabels

    head: list[str] = []
    rows: list[list[object]] = []
    for number, (text, item) in enumerate(zip(texts, found, strict=True), start=1):
        match item:
            case Prediction():
                head = ["label", "score", "text"]
                rows.append([item.label, f"{item.score:.3f}", text[:100]])
            case LabelScores():
                head = ["labels", "scores", "text"]
                scores = " ".join(f"{item.scores[label]:.3f}" for label in item.labels)
                rows.append([", ".join(item.labels) or "-", scores or "-", text[:100]])
            case Score():
                head = ["score", "text"]
                rows.append([f"{item.score:.3f}", text[:100]])
            case WordLabels():
                head = ["text", "word", "label", "score"]
                rows += [[number, word.word, word.label, f"{word.score:.3f}"] for word in item.words]
    if len(texts) == 1 and head[0] == "text":  # the words of one text need no number of the text
        head, rows = head[1:], [row[1:] for row in rows]
    common.print_table(head, rows)
