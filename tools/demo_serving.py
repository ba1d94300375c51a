"""The end of the demo: a server over the hub that it filled, asked over HTTP, changed while it answers, and stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltahub import Base, Client, Hub, Predictor
from deltahub.answers import Prediction, WordLabels
from deltahub.cli import main as deltahub
from deltahub.cli.common import print_table

if TYPE_CHECKING:
    from deltahub.answers import Answer
    from deltahub.replies import Reply

ROUNDS = 25
COMPARED = 64
PATIENCE = 60.0


def serve(base: str, hub: str, references: Sequence[str], data: Path, question: str) -> None:
    """Shows the server at work; ends the demo where it answers anything but what one process answers alone.

    Args:
        references: the versions to ask.
        data: with ``TASK/test.jsonl``, whose texts are compared by.
    """
    with started(hub, base) as process:
        url = listening(process)
        with Client(url) as client:
            ask_all(client, references, question)
            compare(client, base, hub, references, data)
            by_hand(url, question)
            move_tag(client, hub, question)
        stop(process)


@contextmanager
def started(hub: str, base: str) -> Iterator[subprocess.Popen[str]]:
    arguments = ["serve", "--hub", hub, "--base", base, "--port", "0", "--refresh", "1"]
    print(f"\n$ deltahub {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "deltahub.cli", *arguments]
    keyless = {name: value for name, value in os.environ.items() if name != "DELTAHUB_API_KEYS"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=keyless) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def listening(process: subprocess.Popen[str]) -> str:
    """The URL, which is all that the server prints on stdout, once it answers."""
    begun = time.perf_counter()
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url:
        sys.exit(f"the server ended with exit code {process.wait()} before it answered")
    print(f"{url}\nanswers {time.perf_counter() - begun:.1f} s after its start", flush=True)
    return url


def ask_all(client: Client, references: Sequence[str], question: str) -> None:
    """The same question to each task, first and again in turn, so that every answer needs a swap."""
    first: dict[str, float] = {}
    again: dict[str, list[float]] = {reference: [] for reference in references}
    replies: dict[str, list[Reply]] = {reference: [] for reference in references}
    for reference in references:
        first[reference] = timed(client, reference, question)[0]
    for _ in range(ROUNDS):
        for reference in references:
            seconds, reply = timed(client, reference, question)
            again[reference].append(seconds)
            replies[reference].append(reply)
    print(f'\n"{question}", milliseconds over HTTP; the first answer loads the task from the hub')
    print_table(
        ["task", "answered by", "answer", "first", "again", "tokens", "queue", "swap", "forward"],
        [
            [reference, found[-1].reference, shown(found[-1].answers[0]), milliseconds([first[reference]]),
             milliseconds(again[reference]), *(
                 milliseconds([getattr(reply.seconds, step) for reply in found])
                 for step in ("prepare", "queue", "swap", "run")
             )]
            for reference, found in replies.items()
        ],
    )  # fmt: skip


def timed(client: Client, reference: str, question: str) -> tuple[float, Reply]:
    begun = time.perf_counter()
    reply = client.predict(reference, [question])
    return time.perf_counter() - begun, reply


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.2f}"


def shown(answer: Answer) -> str:
    if isinstance(answer, WordLabels):
        return " ".join(f"`{word.word}`" if word.label == "code" else word.word for word in answer.words)
    assert isinstance(answer, Prediction)
    return f"{answer.label} {answer.score:.2f}"


def compare(client: Client, base: str, hub: str, references: Sequence[str], data: Path) -> None:
    """Held-out texts of every task, over HTTP and by one process alone."""
    predictor = Predictor(Base.open(base))
    furthest, count = 0.0, 0
    for reference in references:
        delta = Hub.open(hub).pull(reference)
        predictor.load(delta)
        lines = (data / delta.task / "test.jsonl").read_text(encoding="utf-8").splitlines()[:COMPARED]
        asked = [row["words"] if "words" in row else row["text"] for row in map(json.loads, lines)]
        reply = client.predict(reference, asked)
        if reply.digest != delta.digest:
            sys.exit(f"{reference}: version {reply.reference} answered, which is not the one in the hub")
        for text, served, alone in zip(asked, reply.answers, predictor.predict(asked), strict=True):
            labels, numbers = plain(served)
            expected_labels, expected = plain(alone)
            if labels != expected_labels or not np.allclose(numbers, expected, rtol=0, atol=1e-5):
                sys.exit(f"{reference} answers otherwise than one process alone:\n{text}\n{served}\n{alone}")
            furthest = max(furthest, float(np.abs(np.subtract(numbers, expected)).max(initial=0)))
            count += 1
    print(f"\n{count} held-out texts: every answer is that of one process alone, scores within {furthest:.0e}")


def plain(answer: Answer) -> tuple[list[str], list[float]]:
    """Labels and numbers."""
    if isinstance(answer, WordLabels):
        return [word.label for word in answer.words], [word.score for word in answer.words]
    assert isinstance(answer, Prediction)
    return [answer.label], list(answer.scores.values())


def by_hand(url: str, question: str) -> None:
    if curl := shutil.which("curl"):
        body = json.dumps({"model": "topic:prod", "input": question})
        arguments = ["-s", f"{url}/v1/classify", "-H", "Content-Type: application/json", "-d", body]
        print(f"\n$ curl {shlex.join(arguments)}", flush=True)
        found = subprocess.run([curl, *arguments], capture_output=True, text=True, check=True).stdout
        print(found if len(found) < 400 else f"{found[:400]}...")
    command("predict", "markup:prod", question, "--url", url)


def move_tag(client: Client, hub: str, question: str) -> None:
    """A tag moves while the server answers; the next refresh sees it."""
    before = client.predict("library:prod", [question])
    command("tag", "library@2", "prod", "--hub", hub)
    begun = time.perf_counter()
    while (after := client.predict("library:prod", [question])).version == before.version:
        if time.perf_counter() - begun > PATIENCE:
            sys.exit(f"library:prod is {before.reference} still, {PATIENCE:g} s after its tag was moved")
    print(
        f"library:prod was answered by {before.reference} ({shown(before.answers[0])}), and "
        f"{time.perf_counter() - begun:.1f} s after its tag moved by {after.reference} ({shown(after.answers[0])})"
    )


def stop(process: subprocess.Popen[str]) -> None:
    print(f"\n$ kill -TERM {process.pid}", flush=True)
    begun = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=PATIENCE)
    print(f"the server ended after {time.perf_counter() - begun:.1f} s with exit code {code}")
    if code:
        sys.exit("the server did not stop cleanly")


def command(*arguments: str) -> None:
    print(f"\n$ deltahub {shlex.join(arguments)}", flush=True)
    if code := deltahub(arguments):
        sys.exit(code)
    sys.stdout.flush()
