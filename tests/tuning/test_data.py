from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.errors import DataError, UsageError
from deltahub.tuning import data
from deltahub.tuning.data import Dataset

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())
ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(["a", "b", "ü"])), min_size=2, max_size=20).filter(
    lambda rows: len({label for _, label in rows}) > 1
)


def write(folder: Path, content: str | bytes, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def classes(texts: tuple[str, ...], labels: tuple[str, ...], names: tuple[str, ...]) -> Dataset:
    return Dataset("text-classification", texts, None, labels, names)


def lines(*rows: tuple[object, object]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


@given(ROWS)
def test_json_lines_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = write(tmp_path_factory.mktemp("data"), "".join(
        json.dumps({"text": text, "label": label, "more": 1}, ensure_ascii=False) + "\n" for text, label in rows
    ))  # fmt: skip
    found = data.read(path)
    assert list(zip(found.texts, found.labels, strict=True)) == rows
    assert found.names == tuple(sorted({label for _, label in rows}))


@given(ROWS)
def test_csv_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    rows = [(text.replace("\0", "0"), label) for text, label in rows]
    path = tmp_path_factory.mktemp("data") / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *((label, text) for text, label in rows)])
    found = data.read(path)
    assert list(zip(found.texts, found.labels, strict=True)) == rows


def test_columns_can_be_named_and_whole_numbers_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, '{"review": "good", "stars": 5}\n\n{"review": "bad", "stars": 1}\n')
    assert data.read(path, text="review", label="stars") == classes(("good", "bad"), ("5", "1"), ("1", "5"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty: expected rows with 'text' and 'label'"),
        ("a.csv", b"text,label\n", "a.csv is empty"),
        ("a.jsonl", lines(("x", "a"), ("y", "a")).encode(), "has one class only: expected at least 2 different labels"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": "y"}\n', "line 2 lacks 'label': expected 'text' and"),
        ("a.csv", b"text,class\nx,a\n", "line 1 lacks 'label': expected 'text' and 'label', found 'text', 'class'"),
        ("a.csv", b"text,label\nx,a\ny,b,c\n", "line 3: expected 2 columns, found 3"),
        ("a.csv", b'text,label\n"x,a\n', "line 2 is not valid CSV"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": "y", \n', "line 2 is not valid JSON"),
        ("a.jsonl", b'["x", "a"]\n', "line 1: expected a JSON object, found list"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("a.jsonl", lines(("x", "a"), (7, "b")).encode(), "line 2: 'text': expected a text, found 7"),
        ("a.jsonl", lines(("  ", "a")).encode(), "line 1: 'text': expected a text"),
        ("a.jsonl", lines(("x", 0.5)).encode(), "line 1: 'label': expected a string of 1 to 1000 characters"),
        ("a.jsonl", lines(("x", True)).encode(), "line 1: 'label': expected a string of 1 to 1000 characters"),
        ("a.jsonl", lines(("x\ud800", "a")).encode(), "line 1: 'text': expected valid Unicode"),
        ("a.jsonl", lines(("x", "a")).encode() + b"\xff\n", "line 2 is not UTF-8: found byte 0xff"),
        ("a.jsonl", b'{"text": "x", "label": "a", "text": "y"}\n', "line 1 has 'text' twice: expected each name once"),
        ("a.csv", b"text,label,label\nx,a,b\n", "line 1 has 'label' twice: expected each name once"),
        ("a.xlsx", b"PK", "has no known format: expected .jsonl"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        data.read(write(tmp_path, content, name))
    assert message in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_text_and_label_are_two_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text and label are the same column 'text': expected two columns"):
        data.read(write(tmp_path, lines(("x", "a"), ("y", "b"))), label="text")


def test_blank_columns_of_a_spreadsheet_are_no_duplicates(tmp_path: Path) -> None:
    assert data.read(write(tmp_path, "text,label,,\nx,a,,\ny,b,,\n", "a.csv")).texts == ("x", "y")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.jsonl"):
        data.read(tmp_path / "nowhere.jsonl")


def test_validation_takes_the_classes_of_the_training_set(tmp_path: Path) -> None:
    train = write(tmp_path, lines(("x", "a"), ("y", "b"), ("z", "c")))
    _, validation = data.load(train, write(tmp_path, lines(("q", "b")), "validation.jsonl"))
    assert validation == classes(("q",), ("b",), ("a", "b", "c"))
    assert validation.label_ids() == [1]


def test_a_label_unseen_in_training_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path, lines(("x", "a"), ("y", "b")))
    validation = write(tmp_path, lines(("p", "a"), ("q", "d")), "validation.jsonl")
    with pytest.raises(DataError, match=r"line 2: label 'd' does not occur in the training data: expected one of a, b"):
        data.load(train, validation)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_loses_nothing_and_keeps_every_class_in_training(labels: list[str], share: float, seed: int) -> None:
    rows = classes(tuple(map(str, range(len(labels)))), tuple(labels), tuple(sorted(set(labels))))
    if all(labels.count(label) < 2 for label in labels):
        with pytest.raises(DataError, match="nothing can be split off"):
            data.split(rows, share=share, seed=seed)
        return
    train, validation = data.split(rows, share=share, seed=seed)
    assert sorted(train.texts + validation.texts, key=int) == list(rows.texts)
    assert set(train.labels) == set(labels)
    for label in set(labels):
        wanted = max(1, round(labels.count(label) * share)) if labels.count(label) > 1 else 0
        assert validation.labels.count(label) == min(wanted, labels.count(label) - 1)
    assert data.split(rows, share=share, seed=seed) == (train, validation)


def test_another_seed_splits_otherwise() -> None:
    rows = classes(tuple(map(str, range(100))), ("a", "b") * 50, ("a", "b"))
    assert data.split(rows, seed=1) != data.split(rows, seed=2)


@pytest.mark.parametrize("share", [0, 1, -1, float("nan")])
def test_a_share_that_leaves_one_part_empty_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="validation share"):
        data.split(classes(("x", "y"), ("a", "b"), ("a", "b")), share=share)
