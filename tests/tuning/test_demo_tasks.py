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


@pytest.mark.parametrize("task", demo_tasks.TASKS)
def test_a_task_can_be_trained_on(folder: Path, task: str) -> None:
    train, validation = data.load(folder / task / "train.jsonl", folder / task / "validation.jsonl")
    test = data.read(folder / task / "test.jsonl", names=train.names)
    assert 800 < len(train) < 2500
    assert min(len(validation), len(test)) > 100
    for part in (train, validation, test):
        counts = [part.labels.count(name) for name in part.names]
        assert max(counts) < 2.5 * min(counts)


@pytest.mark.parametrize("task", demo_tasks.TASKS)
def test_no_text_is_twice_in_a_task(folder: Path, task: str) -> None:
    texts = [
        json.loads(line)["text"]
        for split in demo_tasks.SPLITS
        for line in (folder / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(set(texts)) == len(texts)


def test_a_text_is_in_the_same_split_of_every_task(folder: Path) -> None:
    where: dict[str, set[str]] = {}
    for task in demo_tasks.TASKS:
        for split in demo_tasks.SPLITS:
            for line in (folder / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
                where.setdefault(json.loads(line)["text"], set()).add(split)
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
