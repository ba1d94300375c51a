"""Every kind of task: what its rows must hold, wherever they come from."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.errors import DataError, DeltahubError, UsageError
from deltahub.names import TEXT_KINDS
from deltahub.tuning import data
from deltahub.tuning.data import Dataset
from tests.tuning import conftest as tasks

CLASS, MULTI, SCORE, TOKEN, EMBED = TEXT_KINDS
Rows = list[dict[str, Any]]
GOOD: dict[str, Rows] = {
    "text-classification": [{"text": "x", "label": "b"}, {"text": "y", "label": "a"}],
    "multi-label-classification": [{"text": "x", "label": ["b", "a"]}, {"text": "y", "label": []}],
    "regression": [{"text": "x", "label": 1.5}, {"text": "y", "label": -2.0}],
    "token-classification": [{"text": ["x", "y"], "label": ["O", "B-X"]}, {"text": ["z"], "label": ["O"]}],
    "embeddings": [{"text": "x", "text_pair": "y"}, {"text": "x", "text_pair": "y"}],
}
FOUND = {
    "text-classification": Dataset("text-classification", ("x", "y"), None, ("b", "a"), ("a", "b")),
    "multi-label-classification": Dataset("multi-label-classification", ("x", "y"), None, (("a", "b"), ()), ("a", "b")),
    "regression": Dataset("regression", ("x", "y"), None, (1.5, -2.0)),
    "token-classification": Dataset(
        "token-classification", (("x", "y"), ("z",)), None, (("O", "B-X"), ("O",)), ("B-X", "O")
    ),
    "embeddings": Dataset("embeddings", ("x", "x"), ("y", "y")),
}
MAKERS = {
    "text-classification": tasks.pair_task,
    "multi-label-classification": tasks.multi_label_task,
    "regression": tasks.score_task,
    "token-classification": tasks.token_task,
    "embeddings": tasks.similarity_task,
}


def json_lines(rows: Rows, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(rows: Rows, folder: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


SOURCES = {
    "json": json_lines,
    "parquet": parquet,
    "datasets": lambda rows, folder: datasets.Dataset.from_list(rows),
    "list": lambda rows, folder: rows,
    "iterator": lambda rows, folder: iter(rows),
}


def refusal(origin: Any, **options: Any) -> str:
    with pytest.raises(DeltahubError) as error:
        data.load(origin, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_every_kind_is_read_alike_from_every_source(kind: str, source: str, tmp_path: Path) -> None:
    assert data.read(SOURCES[source](GOOD[kind], tmp_path), kind=kind) == FOUND[kind]


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification", "regression", "embeddings"])
def test_csv_holds_every_kind_but_words(kind: str, tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GOOD[kind][0]))
        writer.writeheader()
        for row in GOOD[kind]:
            writer.writerow({name: "|".join(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    assert data.read(tmp_path / "rows.csv", kind=kind) == FOUND[kind]
    assert "a table of strings holds no lists of words" in refusal(tmp_path / "rows.csv", kind="token-classification")


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification", "regression"])
def test_second_texts_go_with_every_kind_of_text(kind: str) -> None:
    rows = [{**row, "second": f"of {row['text']}"} for row in GOOD[kind]]
    assert data.read(rows, kind=kind, text_pair="second").pairs == ("of x", "of y")


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification", "token-classification"])
@pytest.mark.parametrize("saved", [False, True])
def test_class_numbers_of_the_datasets_library_become_names(kind: str, saved: bool, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["neg", "pos", "never"])
    rows: Rows = [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    if kind != "text-classification":
        rows = [{"text": [row["text"]] if kind[0] == "t" else row["text"], "label": [row["label"]]} for row in rows]
    features = datasets.Features({
        "text": datasets.List(datasets.Value("string")) if kind == "token-classification" else datasets.Value("string"),
        "label": label if kind == "text-classification" else datasets.List(label),
    })  # fmt: skip
    origin: Any = datasets.Dataset.from_list(rows, features=features)
    if saved:
        pyarrow.parquet.write_table(origin.with_format("arrow")[:], tmp_path / "rows.parquet")
        origin = tmp_path / "rows.parquet"
    found = data.read(origin, kind=kind)
    assert found.names == ("neg", "pos")
    assert found.labels in {("pos", "neg"), (("pos",), ("neg",))}


def test_a_row_without_a_class_is_refused() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_list([{"text": "x", "label": -1}], features=features)
    message = "the training data, row 1: 'label': expected a class number from 0 to 1, found -1; leave out rows without"
    assert message in refusal(rows)


def test_a_dataset_may_have_any_format_be_a_stream_and_have_more_columns() -> None:
    rows = datasets.Dataset.from_list([{**row, "more": [1]} for row in GOOD["regression"]]).with_format("numpy")
    assert data.read(rows, kind="regression") == FOUND["regression"]
    assert data.read(rows.to_iterable_dataset(), kind="regression") == FOUND["regression"]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (MULTI, [{"text": "x", "label": "a|b"}], "row 1: 'label': expected a list of labels, found 'a|b'"),
        (MULTI, [{"text": "x", "label": ["a", ""]}], "row 1: 'label': expected a string of 1 to"),
        (MULTI, [{"text": "x", "label": ["a", 1]}], "expected a string as in rows before, found 1"),
        (MULTI, [{"text": "x", "label": []}], "has one class only: expected at least 2 different labels, found no"),
        (MULTI, [{"text": "x", "label": ["a"]}], "has one class only"),
        (CLASS, [*GOOD[CLASS], {"text": "z", "label": 3}], "row 3: 'label': expected a string as in"),
        (SCORE, [{"text": "x", "label": float("nan")}], "row 1: 'label': expected a finite number, found nan"),
        (SCORE, [{"text": "x", "label": 10**400}], "expected a finite number"),
        (SCORE, [{"text": "x", "label": "1.5"}], "expected a finite number, found '1.5'"),
        (SCORE, [{"text": "x", "label": True}], "expected a finite number, found True"),
        (SCORE, [{"text": "x", "label": None}], "expected a finite number, found None"),
        (SCORE, [{"text": "x", "label": 2}] * 3, "one target only: expected at least 2 different numbers, found 2.0"),
        (TOKEN, [{"text": "x y", "label": ["O", "O"]}], "row 1: 'text': expected a list of words, found 'x y'"),
        (TOKEN, [{"text": [], "label": []}], "expected a list of words, found []"),
        (TOKEN, [{"text": ["x", " "], "label": ["O", "O"]}], "row 1: word 2 of 'text': expected a text"),
        (TOKEN, [{"text": ["x", "y"], "label": ["O"]}], "expected 2 labels, one per word, found 1 labels"),
        (TOKEN, [{"text": ["x"], "label": "O"}], "expected a list of one label per word, found 'O'"),
        (TOKEN, [{"text": ["x"], "label": ["O"]}], "has one class only"),
        (EMBED, [{"text": "x", "text_pair": " "}], "row 1: 'text_pair': expected a text, found ' '"),
        (EMBED, [{"text": "x", "label": "y"}], "row 1 lacks 'text_pair': expected 'text' and 'text_pair'"),
        (EMBED, [{"text": "x", "text_pair": "y"}], "has one row only"),
        (SCORE, [], "the training data is empty: expected rows with 'text' and 'label'"),
        (SCORE, ["x"], "row 1: expected a mapping of column to value, found str"),
        (SCORE, {"train": []}, "the training data: expected a file or rows, each a mapping, found dict"),
        (SCORE, 7, "the training data: expected a file or rows, each a mapping, found int"),
        ("text-generation", [], "the kind of task: expected one of text-classification, multi-label"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_in_one_line(kind: str, rows: Any, message: str) -> None:
    assert message in refusal(rows, kind=kind)


@pytest.mark.parametrize(("cell", "shown"), [("nan", "'nan'"), ("", "''"), ("1_0", "'1_0'"), ("1,5", "'1,5'")])
def test_a_score_in_a_table_is_a_finite_number(cell: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\nx\t1e1\ny\t{cell}\n")
    assert f"line 3: 'label': expected a finite number, found {shown}" in refusal(
        tmp_path / "rows.tsv", kind="regression"
    )


@pytest.mark.parametrize("kind", ["multi-label-classification", "token-classification"])
def test_a_label_unseen_in_training_is_refused_within_lists_too(kind: str) -> None:
    other = [{**GOOD[kind][0], "label": ["a" if kind[0] == "m" else "O", "new"]}]
    message = "the validation data, row 1: label 'new' does not occur in the training data"
    assert message in refusal(GOOD[kind], validation=other, kind=kind)


def test_validation_targets_may_be_all_the_same() -> None:
    _, validation = data.load(GOOD["regression"], [{"text": "z", "label": 1}], kind="regression")
    assert validation == data.read([{"text": "z", "label": 1}], kind="regression", names=())
    assert validation.labels == (1.0,)


def test_words_have_no_second_text() -> None:
    assert "second texts for token-classification" in refusal([], kind="token-classification", text_pair="b")


def test_three_columns_are_three() -> None:
    message = refusal([], text_pair="text")
    assert message == "the training data: text and text_pair are the same column 'text': expected three columns"


@pytest.mark.parametrize("content", [b"PAR1", b"", None])
def test_a_damaged_parquet_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rows.parquet").write_bytes(content)
    assert f"cannot read {tmp_path / 'rows.parquet'} (" in refusal(tmp_path / "rows.parquet")


def test_columns_of_a_parquet_file_are_looked_for_before_rows(tmp_path: Path) -> None:
    path = parquet([{"text": "x", "class": "a"}], tmp_path)
    assert f"{path} lacks 'label': expected 'text' and 'label', found 'text', 'class'" in refusal(path)


@pytest.mark.parametrize("noted", [b"[1]", b"{", b'{"info": {"features": 3}}', b"\xff"])
def test_notes_in_a_parquet_file_that_are_none_are_refused(noted: bytes, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(GOOD[SCORE]).replace_schema_metadata({b"huggingface": noted})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert "metadata of the datasets library: expected a JSON object" in refusal(tmp_path / "rows.parquet", kind=SCORE)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\nfrom deltahub.errors import UsageError\n"
        "from deltahub.tuning import data\n"
        f"try: data.read({str(parquet(GOOD['regression'], tmp_path))!r})\nexcept UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rows.parquet needs pyarrow; install deltahub[train]" in done.stdout


@given(st.sampled_from(TEXT_KINDS), st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_of_every_kind_loses_nothing(kind: str, count: int, share: float, seed: int) -> None:
    rows = MAKERS[kind](40, seed=1).take(range(10, 10 + count))
    if kind == "text-classification" and max(map(rows.labels.count, rows.names)) < 2:
        return
    train, validation = data.split(rows, share=share, seed=seed)
    assert min(len(train), len(validation)) > 0
    assert train.names == validation.names == rows.names

    def columns(part: Dataset) -> list[tuple[Any, ...]]:
        return list(zip(part.texts, part.pairs or part.texts, part.labels or part.texts, strict=True))

    assert sorted(columns(train) + columns(validation)) == sorted(columns(rows))
    assert data.split(rows, share=share, seed=seed) == (train, validation)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(DataError, match="nothing can be split off for validation: expected at least 2 rows, found 1"):
        data.split(Dataset("regression", ("x",), None, (1.0,)))


def test_labels_as_numbers() -> None:
    assert FOUND["text-classification"].label_ids() == [1, 0]
    assert FOUND["multi-label-classification"].label_ids() == [[1.0, 1.0], [0.0, 0.0]]
    assert FOUND["regression"].label_ids() == [1.5, -2.0]
    assert FOUND["token-classification"].label_ids() == [[1, 0], [1]]
    assert FOUND["embeddings"].label_ids() == []


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": "embeddings", "texts": ("x",)},
        {"kind": "token-classification", "texts": (("x",),), "pairs": ("y",), "labels": (("O",),)},
        {"kind": "regression", "texts": ("x", "y"), "labels": (1.0,)},
        {"kind": "regression", "texts": ("x",), "pairs": (), "labels": (1.0,)},
        {"kind": "other", "texts": ()},
    ],
)
def test_columns_that_do_not_fit_make_no_dataset(columns: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Dataset(**columns)


def test_the_commonest_answer() -> None:
    assert data.majority_share(FOUND["token-classification"]) == 2 / 3
    assert data.majority_share(FOUND["multi-label-classification"]) == 1 / 2
    with pytest.raises(UsageError, match="regression has no commonest class"):
        data.majority_share(FOUND["regression"])


def test_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = ("a", "b", "b", "c", "b", "c")
    rows = Dataset("text-classification", labels, None, labels, ("a", "b", "c"))
    wanted = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert data.class_weights(rows) == pytest.approx(tuple(wanted))


def test_weights_of_positives_even_them_out_within_bounds() -> None:
    labels = (("a", "c"), ("a",), ("a", "b"), ("a",))
    rows = Dataset("multi-label-classification", tuple("wxyz"), None, labels, ("a", "b", "c", "d"))
    assert data.class_weights(rows) == (0.01, 3.0, 3.0, 4.0)
    many = rows.take([0, *[2] * 500])
    assert data.class_weights(many)[2] == 100.0
    with pytest.raises(UsageError, match="class weights for regression"):
        data.class_weights(FOUND["regression"])
