from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltahub.tuning import data
from tools import demo_tasks

TOOL = Path(demo_tasks.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by a process of its own, in which any warning is an error."""
    made = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:torch", str(TOOL), str(made)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(made / task) for task in demo_tasks.TASKS]
    assert done.stderr == ""
    return made


def texts_of(folder: Path, task: str, split: str) -> list[str]:
    rows = [json.loads(line) for line in (folder / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] if "text" in row else " ".join(row["words"]) for row in rows]


@pytest.mark.parametrize("task", demo_tasks.CLASSIFIED)
def test_a_task_can_be_trained_on(folder: Path, task: str) -> None:
    train, validation = data.load(folder / task / "train.jsonl", folder / task / "validation.jsonl")
    test = data.read(folder / task / "test.jsonl", names=train.names)
    assert 800 < len(train) < 2500
    assert min(len(validation), len(test)) > 100
    for part in (train, validation, test):
        counts = [part.labels.count(name) for name in part.names]
        assert max(counts) < 2.5 * min(counts)


def test_words_can_be_trained_on(folder: Path) -> None:
    columns = {"kind": "token-classification", "text": "words", "label": "labels"}
    train, validation = data.load(folder / "markup/train.jsonl", folder / "markup/validation.jsonl", **columns)
    test = data.read(folder / "markup/test.jsonl", **columns, names=train.names)
    assert train.names == ("code", "prose")
    assert 800 < len(train) < 2500
    assert min(len(validation), len(test)) > 100
    for part in (train, validation, test):
        assert 0.6 < data.majority_share(part) < 0.9
        assert "`" not in " ".join(word for words in part.texts for word in words)


@pytest.mark.parametrize("task", demo_tasks.TASKS)
def test_no_text_is_twice_in_a_task(folder: Path, task: str) -> None:
    texts = [text for split in demo_tasks.SPLITS for text in texts_of(folder, task, split)]
    assert len(set(texts)) == len(texts)


def test_a_text_is_in_the_same_split_of_every_task(folder: Path) -> None:
    where: dict[str, set[str]] = {}
    for task in demo_tasks.TASKS:
        for split in demo_tasks.SPLITS:
            for text in texts_of(folder, task, split):
                where.setdefault(text, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize(
    ("task", "words"), [("library", ("numpy", "torch", "python")), ("object", ("class", "method"))]
)
def test_the_answer_does_not_stand_in_the_question(folder: Path, task: str, words: tuple[str, ...]) -> None:
    for split in demo_tasks.SPLITS:
        for text in data.read(folder / task / f"{split}.jsonl").texts:
            assert not set(words) & set(text.lower().split())


def test_the_same_versions_give_the_same_files_whatever_is_loaded(folder: Path, tmp_path: Path) -> None:
    demo_tasks.write_tasks(tmp_path)
    for task in demo_tasks.TASKS:
        for split in demo_tasks.SPLITS:
            part = Path(task) / f"{split}.jsonl"
            assert (tmp_path / part).read_bytes() == (folder / part).read_bytes()


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("array(object, dtype=None)\n\nCreate an array. More words.", "Create an array"),
        ("Return the\n    first item.", "Return the first item"),
        ("Applies :func:`~torch.relu` to each element::\n\n x", "Applies torch.relu to each element"),
        ("Short one.", ""),
        ("", ""),
    ],
)
def test_the_first_sentence_is_prose(doc: str, sentence: str) -> None:
    assert demo_tasks.first_sentence(doc) == sentence


@pytest.mark.parametrize(
    ("sentence", "code"),
    [
        ("Returns a copy of :attr:`self` if ``out_dim`` is None.", ["self", "out_dim"]),
        ("Like :func:`~torch.add`, but (`a + b`) is new.", ["torch.add,", "(a", "+", "b)"]),
        ("Nothing is marked here at all.", []),
    ],
)
def test_marks_become_labels(sentence: str, code: list[str]) -> None:
    found = demo_tasks.words_of(sentence)
    assert found is not None
    assert [word for word, label in zip(found.words, found.labels, strict=True) if label == "code"] == code
    assert "`" not in " ".join(found.words)


@pytest.mark.parametrize(
    "sentence",
    [
        "Half a `mark is left.",
        "See `the guide <url>`_ first.",
        "Gives :math:`x^2` of it.",
        "no capital `x` here.",
        "No stop",
    ],
)
def test_a_sentence_marked_in_other_ways_is_left_out(sentence: str) -> None:
    assert demo_tasks.words_of(sentence) is None
