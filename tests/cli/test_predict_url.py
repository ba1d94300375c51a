"""`deltahub predict --url` against a real server, and against servers that are none or not there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deltahub_serve.config import Config, hashed_keys

from deltahub import Base, Hub, Mask
from deltahub.cli import main
from tests.scripted import Scripted, refusal, reply, served
from tests.serve.running import running
from tests.tasks import random_task
from tests.tuning.conftest import WORDS, write_text_base

Run = Callable[..., tuple[int, str, str]]
KINDS = (
    "text-classification", "multi-label-classification", "regression", "token-classification", "embeddings"
)  # fmt: skip
CARD = {"name": "length", "kind": "regression", "labels": [], "pair": False, "versions": [3], "tags": {}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("predict-url"))


@pytest.fixture(scope="module")
def hub(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A task of each kind, called so, and ``same``, which compares two texts and has two versions."""
    made, mask = Hub.open(tmp_path_factory.mktemp("hub")), Mask.build(base, 0.05)
    for seed, kind in enumerate(KINDS):
        made.push(random_task(base, mask, kind, task=kind, seed=seed))
    for seed, tag in enumerate(("old", "new")):
        made.push(random_task(base, mask, "regression", task="same", seed=seed, inputs={"pair": True}), tags=(tag,))
    return made


@pytest.fixture(scope="module")
def config(base: Base, hub: Hub) -> Config:
    return Config(hub=hub.store.url, base=str(base.path), base_name="tiny-base", max_inputs=100, max_body=100_000)


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with running(config) as server:
        yield server.url


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path))
    monkeypatch.delenv("DELTAHUB_API_KEY", raising=False)
    monkeypatch.setattr("deltahub.client.time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return main(["predict", *arguments]), *capsys.readouterr()

    return call


def alike(left: Any, right: Any) -> bool:
    """Equal, but for the last bits of numbers, which depend on what else was in the pass."""
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) < 1e-5
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == right)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_answers_what_the_command_answers_alone(run: Run, url: str, base: Base, hub: Hub, kind: str) -> None:
    texts = ("w0 w1 w2", "w3 w4 w5")
    here = ("--hub", hub.store.url, "--base", str(base.path))
    if kind != "embeddings":  # these are numbers to the last bit in both forms
        assert run(kind, *texts, "--url", url) == run(kind, *texts, *here)
    served, alone = run(kind, *texts, "--json", "--url", url), run(kind, *texts, "--json", *here)
    assert (served[0], served[2]) == (0, "")
    assert alike(json.loads(served[1]), json.loads(alone[1]))
    assert run(kind, "--json", "--url", url, stdin="\n".join(texts))[1] == served[1]


@pytest.mark.parametrize("name", ["same", "same@1", "same:old"])
def test_pairs_of_a_version_or_tag(run: Run, url: str, base: Base, hub: Hub, name: str) -> None:
    here = ("--hub", hub.store.url, "--base", str(base.path))
    asked = ("w0", "w1", "--pair", "w2", "--pair", "w3")
    assert run(name, *asked, "--url", url) == run(name, *asked, *here)
    assert run(name, "--url", url, stdin="w0\tw2\nw1\tw3\n") == run(name, *asked, "--url", url)
    assert run("same:new", *asked, "--url", url)[1] != run("same:old", *asked, "--url", url)[1]


def test_the_base_gives_embeddings_of_its_own(run: Run, url: str) -> None:
    code, out, _ = run("tiny-base", "w0", "w1", "--url", url)
    assert (code, [len(vector) for vector in json.loads(out)]) == (0, [32, 32])


def test_more_texts_than_a_request_takes_come_back_in_their_order(run: Run, url: str) -> None:
    texts = [" ".join(WORDS[number % 40 : number % 40 + 1 + number % 5]) for number in range(700)]
    code, out, err = run("regression", "--json", "--url", url, stdin="\n".join(texts))
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [item["text"] for item in found] == texts
    first = {item["text"]: item["score"] for item in reversed(found)}
    assert all(alike(item["score"], first[item["text"]]) for item in found)
    assert len({round(score, 3) for score in first.values()}) > 20


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["regresion", "w0"], "", 1, "did you mean regression"),
        (["same@9", "w0", "--pair", "w1"], "", 1, "same has no version 9: found versions up to 2"),
        (["../same", "w0"], "", 1, "'../same'"),
        (["regression"], "", 2, "no text: expected arguments, or lines on standard input"),
        (["regression", "w0", "--pair", "w1"], "", 2, "--pair: regression takes single texts"),
        (["same", "w0"], "", 2, "same compares two texts: expected --pair TEXT 1 times, found 0"),
        (["same"], "w0\tw1\nw2\n", 2, "line 2: same compares two texts: expected TEXT<tab>TEXT, found 0 tabs"),
        (["regression", "w0", "--base", "b"], "", 2, "--base means nothing to a server"),
        (["regression", "w0", "--batch-size", "2"], "", 2, "--batch-size means nothing to a server"),
        (["regression", "w0", "--hub", "h"], "", 2, "--hub means nothing to a server"),
        (["task.delta", "w0"], "", 2, "task.delta is a file: expected a task that the server has"),
        (["regression", "w0", "--api-key-file", "none"], "", 2, "--api-key-file none cannot be read"),
        (["regression"], "w" * 200_000, 1, "100000"),
    ],
)
def test_what_is_refused_is_said_in_one_line(
    run: Run, url: str, arguments: list[str], stdin: str, code: int, said: str
) -> None:
    found = run(*arguments, "--url", url, stdin=stdin)
    assert found[:2] == (code, "")
    assert found[2].startswith("deltahub: ")
    assert said in found[2]
    assert found[2].count("\n") == 1


def test_without_a_server_a_base_is_needed_and_a_key_is_not(run: Run) -> None:
    assert "expected --base BASE, or --url URL of a server" in run("regression", "w0")[2]
    assert "--api-key-file is for a server" in run("regression", "w0", "--api-key-file", "f")[2]


def test_a_key_comes_from_a_file_or_the_environment(
    run: Run, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "good": "# ours\n\ngood-key-1\nother-key\n",
        "wrong": "wrong-key-1",
        "empty": "# none\n",
    }.items():
        (tmp_path / name).write_text(text)
    with running(config.model_copy(update={"api_keys": hashed_keys("good-key-1")})) as server:
        ask = ("regression", "w0", "--url", server.url)
        code, _, err = run(*ask)
        assert code == 1
        assert "Authorization: Bearer KEY" in err
        assert run(*ask, "--api-key-file", "good")[0] == 0
        code, _, err = run(*ask, "--api-key-file", "wrong")
        assert (code, err) == (1, "deltahub: the key is not one of this server's\n")
        assert "empty has no key" in run(*ask, "--api-key-file", "empty")[2]
        monkeypatch.setenv("DELTAHUB_API_KEY", "good-key-1")
        assert run(*ask)[0] == 0


def test_a_busy_server_is_asked_again(run: Run) -> None:
    busy = refusal(429, "overloaded", "too many wait", 0.5)
    with served(Scripted([(200, {}, CARD), busy, busy])) as server:
        assert run("length", "w0", "--url", server.url)[:2] == (0, "score  text\n2.000  w0\n")
    assert len(server.requests) == 4


@pytest.mark.parametrize("answer", [(200, {}, b"<html>"), (404, {}, b"<html>"), (200, {}, {"name": "length"})])
def test_another_kind_of_server_is_named(run: Run, answer: Any) -> None:
    with served(Scripted([answer])) as server:
        code, out, err = run("length", "w0", "--url", server.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"deltahub: what answers at {server.url}: expected a deltahub server, found ")
    assert err.count("\n") == 1


def test_where_nobody_listens_is_said_in_one_line(run: Run) -> None:
    with served(Scripted()) as gone:
        pass
    code, out, err = run("length", "w0", "--url", gone.url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{gone.url} cannot be reached" in err
    assert run("length", "w0", "--url", "localhost:8000")[0] == 2


def test_asking_a_server_needs_no_torch() -> None:
    code = (
        "import sys\nfrom deltahub.cli import main\n"
        "assert main(['predict', 'length', 'w0', '--url', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    with served(Scripted([(200, {}, CARD)], rest=lambda request: (200, {}, reply(request)))) as server:
        done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "score  text\n2.000  w0\n"), done.stderr
