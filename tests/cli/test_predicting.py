"""`deltahub predict` for every kind of task."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltahub.checkpoint import Base
from deltahub.cli import main
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("cli-predict"))


@pytest.fixture
def ask(base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path))

    def call(
        kind: str, *arguments: str, inputs: dict[str, object] | None = None, stdin: bytes = b""
    ) -> tuple[int, str, str]:
        path = tmp_path / "task.delta"
        random_task(base, None, kind, inputs=inputs).save(path)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["predict", str(path), *arguments, "--base", str(base.path)])
        return code, *capsys.readouterr()

    return call


TABLES = {
    "text-classification": ["label", "score", "text"],
    "multi-label-classification": ["labels", "scores", "text"],
    "regression": ["score", "text"],
    "token-classification": ["text", "word", "label", "score"],
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_for_people(ask: Ask, kind: str) -> None:
    code, out, err = ask(kind, "w0 w1", "w2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == TABLES[kind]
    assert len(lines) == (4 if kind == "token-classification" else 3)
    if kind == "token-classification":
        assert [line.split()[:2] for line in lines[1:]] == [["1", "w0"], ["1", "w1"], ["2", "w2"]]
    else:
        assert [line.rpartition("  ")[2].strip() for line in lines[1:]] == ["w0 w1", "w2"]


@pytest.mark.parametrize("kind", TABLES)
def test_json_for_programs(ask: Ask, kind: str) -> None:
    code, out, _ = ask(kind, "--json", stdin=b"w0 w1\nw2\n")
    assert code == 0
    found = json.loads(out)
    assert [item["text"] for item in found] == ["w0 w1", "w2"]
    key = {"multi-label-classification": "labels", "token-classification": "words"}.get(kind, "score")
    assert all(key in item for item in found)


def test_the_words_of_one_text_need_no_number(ask: Ask) -> None:
    assert ask("token-classification", "w0 w1")[1].splitlines()[0].split() == ["word", "label", "score"]


def test_embeddings_are_vectors(ask: Ask) -> None:
    code, out, _ = ask("embeddings", "w0", "w1", inputs={"pooling": "mean"})
    assert code == 0
    assert [len(vector) for vector in json.loads(out)] == [32, 32]


def test_pairs_come_from_an_option_or_after_a_tab(ask: Ask) -> None:
    pair = {"pair": True}
    code, out, _ = ask("regression", "w0", "w1", "--pair", "w2", "--pair", "w3", "--json", inputs=pair)
    assert code == 0
    assert [(item["text"], item["pair"]) for item in json.loads(out)] == [("w0", "w2"), ("w1", "w3")]
    assert ask("regression", "--json", inputs=pair, stdin=b"w0\tw2\nw1\tw3\n")[1] == out
    assert "w0 | w2" in ask("regression", "w0", "--pair", "w2", inputs=pair)[1]


@pytest.mark.parametrize(
    ("arguments", "inputs", "stdin", "said"),
    [
        ([], {}, b"", "no text: expected arguments, or lines on standard input"),
        (["w0", "--pair", "w1"], {}, b"", "--pair: task takes single texts"),
        (["w0"], {"pair": True}, b"", "task compares two texts: expected --pair TEXT 1 times, found 0"),
        ([], {"pair": True}, b"w0\tw1\nw2\n", "line 2: task compares two texts: expected TEXT<tab>TEXT, found 0 tabs"),
        (["w0", "--batch-size", "0"], {}, b"", "--batch-size: expected 1 or more, found 0"),
    ],
)
def test_questions_that_cannot_be_meant(
    ask: Ask, arguments: list[str], inputs: dict[str, object], stdin: bytes, said: str
) -> None:
    code, out, err = ask("regression", *arguments, inputs=inputs, stdin=stdin)
    assert (code, out) == (2, "")
    assert err.startswith(f"deltahub: {said}")
    assert err.count("\n") == 1
