"""`deltahub predict`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltahub.answers import Answer
    from deltahub.manifest import Manifest


def add(commands: common.Commands) -> None:
    predict = common.command(
        commands, "predict", _predict, "ask a task about texts, in one process and without a server",
        "Answers are labels, numbers, labels of words or embeddings, as the task's kind has it. "
        "Texts come from the arguments, or as plain lines (not JSON) from standard input.",
    )  # fmt: skip
    predict.add_argument(
        "task", metavar="TASK|FILE", help="a task of the hub (TASK, TASK@N, TASK:TAG) or a .delta file"
    )
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="texts (default: lines of standard input)")
    predict.add_argument(
        "--pair", metavar="TEXT", dest="pairs", action="append",
        help="the second text, for a task that compares two; once per TEXT (on standard input: TEXT<tab>TEXT)",
    )  # fmt: skip
    common.base_option(predict, purpose="the base that the task was made from")
    common.mask_option(predict)
    predict.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per pass (default: 32)")
    common.hub_option(predict)
    common.json_option(predict)


def _predict(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.predict import Predictor

    delta = common.load_delta(options.task, options)
    texts, pairs = _questions(options, delta.manifest)
    if options.batch_size < 1:
        raise UsageError("--batch-size", expected="1 or more", got=options.batch_size)
    predictor = Predictor(common.open_base(options.base, options.revision), common.find_mask(options, delta))
    predictor.load(delta)
    found = predictor.predict(texts, pairs, batch_size=options.batch_size)
    if delta.manifest.kind == "embeddings":
        common.print_json([item.as_dict()["embedding"] for item in found])
    elif options.json:
        asked = [
            {"text": text} if pairs is None else {"text": text, "pair": pairs[row]} for row, text in enumerate(texts)
        ]
        common.print_json([question | item.as_dict() for question, item in zip(asked, found, strict=True)])
    else:
        shown = texts if pairs is None else [f"{text} | {pair}" for text, pair in zip(texts, pairs, strict=True)]
        _print_table(shown, found)


def _questions(options: argparse.Namespace, manifest: Manifest) -> tuple[list[str], list[str] | None]:
    """The texts and, for a task that compares two, the second ones.

    Raises:
        UsageError: no text, standard input that is no UTF-8, or second texts that are missing, too many or not wanted.
    """
    from deltahub.errors import UsageError

    texts: list[str] = options.texts or _lines()
    pairs: list[str] | None = options.pairs
    if not texts:
        raise UsageError("no text", expected="arguments, or lines on standard input")
    if manifest.inputs.get("pair") is not True:
        if pairs is not None:
            raise UsageError(f"--pair: {manifest.task} takes single texts", hint="leave --pair out")
        return texts, None
    if pairs is None and not options.texts:
        split = [line.split("\t") for line in texts]
        if wrong := [number for number, parts in enumerate(split, start=1) if len(parts) != 2]:
            raise UsageError(
                f"line {wrong[0]}: {manifest.task} compares two texts", expected="TEXT<tab>TEXT",
                got=f"{len(split[wrong[0] - 1]) - 1} tabs",
            )  # fmt: skip
        return [first for first, _ in split], [second for _, second in split]
    if pairs is None or len(pairs) != len(texts):
        raise UsageError(
            f"{manifest.task} compares two texts", expected=f"--pair TEXT {len(texts)} times", got=len(pairs or [])
        )
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
