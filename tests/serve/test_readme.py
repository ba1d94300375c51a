"""What serve/README.md shows is what a server answers: every command in it is run, in its order, on one server.

Numbers that hang on trained values, digests and which label wins are not compared; everything else is, to the letter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from deltahub_serve.config import Config, hashed_keys
from deltahub_serve.web.errors import MANNERS

from deltahub import Base, Hub, Mask
from tests.serve.running import running
from tests.tasks import random_task

TEXT = (Path(__file__).parents[2] / "serve" / "README.md").read_text(encoding="utf-8")
ADDRESS = "localhost:8000"
LABELS = {
    "library": ("numpy", "python", "torch"),
    "object": ("class", "function", "method"),
    "topic": (
        "concurrency", "data", "files", "language", "mathematics", "network", "neural networks", "text"
    ),
    "markup": ("code", "prose"),
}  # fmt: skip
Command = tuple[str, str]
"""A command and what the README shows of its output."""


def commands(text: str) -> list[Command]:
    """Those of the blocks of kind ``console``; a command goes on where its line ends in a backslash."""
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            length = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\\n"))
            found.append(("".join(lines[:length]).strip(), "".join(lines[length:])))
    return found


def masked(text: str) -> str:
    """Without blanks, and with one sign for each thing that another training would change."""
    text = re.sub(r"-?\b\d+(\.\d+(e[-+]\d+)?|e[-+]\d+)", "0.0", text)
    text = re.sub(r'(replica"?[:=]|"changed":{)"[^"]*"', r"\1REPLICA", text)
    text = re.sub(r"x-replica: \S+", "x-replica: REPLICA", text)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "DIGEST", text)
    text = re.sub(r"\b\d{4,}\b", "0000", text)
    for label in sorted((label for labels in LABELS.values() for label in labels), key=len, reverse=True):
        text = re.sub(
            rf'("(?:label|entity)": ?"){label}(?=")|^(\S+ +){label}(?= )', r"\1\2LABEL", text, flags=re.MULTILINE
        )
    return re.sub(r"\s+", "", text)


@pytest.fixture(scope="module")
def folder(real_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a hub as the demo leaves it, but for the training."""
    made = tmp_path_factory.mktemp("readme")
    (made / "demo-out").mkdir()
    hub, mask = Hub.open(made / "demo-out" / "hub"), Mask.build(real_base)
    for seed, (task, labels) in enumerate(LABELS.items()):
        kind = "token-classification" if task == "markup" else "text-classification"
        delta = random_task(real_base, mask, kind, task=task, seed=seed, labels=labels, inputs={"max_length": 64})
        hub.push(delta, tags=("prod",))
        if task == "library":
            hub.push(delta, tags=("small",), values="int4", head="int8")
    return made


@pytest.fixture(scope="module")
def address(real_base: Base, folder: Path) -> Iterator[str]:
    keys = hashed_keys("an-admin-key")
    config = Config(hub=str(folder / "demo-out" / "hub"), base=str(real_base.path), base_name="mini", admin_keys=keys)
    with running(config) as server:
        yield server.url.removeprefix("http://")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_every_command_gives_what_is_shown(address: str, folder: Path) -> None:
    found = commands(TEXT)
    assert len(found) >= 15
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    surroundings = {
        "PATH": path, "HOME": str(folder), "JSON": "content-type: application/json", "ADMIN_KEY": "an-admin-key"
    }  # fmt: skip
    for command, shown in found:
        done = subprocess.run(
            ["bash", "-c", command.replace(ADDRESS, address)],
            capture_output=True, text=True, check=False, cwd=folder, env=surroundings,
        )  # fmt: skip
        given = masked(done.stdout.replace(address, ADDRESS))
        expected = masked(shown)
        if expected.endswith("..."):  # a long line that is cut
            expected = expected.removesuffix("...")
            given = given[: len(expected)]
        assert given == expected, f"{command}\n{done.stdout}{done.stderr}"


def test_the_python_example_runs(address: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        names: dict[str, object] = {}
        exec(example.replace(ADDRESS, address), names)
        assert len(names["vector"]) == 384 if "vector" in names else names["reply"]  # type: ignore[arg-type]


def test_every_route_is_listed(address: str) -> None:
    paths = httpx.get(f"http://{address}/openapi.json").json()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = set(re.findall(r"`((?:GET|POST) /[^`]*)`(?=[^|]*\|)", TEXT))
    assert {re.sub(r"\{\w+\}", "TASK", route) for route in there} <= listed


def test_every_reason_is_listed_with_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (`.*?) \|", TEXT, re.MULTILINE)
    listed = {reason: statuses for statuses, reasons in rows for reason in re.findall(r"\w+", reasons)}
    told = {reason: manner.native for reason, manner in MANNERS.items() if reason != "gone"}
    assert listed.keys() == told.keys()
    assert [reason for reason, status in told.items() if str(status) not in listed[reason]] == []


def test_a_change_of_an_answer_would_be_seen() -> None:
    shown = '{"label":"torch","score":0.91,"version":1}'
    assert masked(shown) == masked('{"label": "numpy",  "score": 0.123, "version": 1}')
    for other in ('{"label":"torch","score":0.91,"version":2}', '{"label":"cat","score":0.91,"version":1}', "{}"):
        assert masked(shown) != masked(other)
