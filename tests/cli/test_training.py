"""`deltahub train` as a user meets it: what it writes, says and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deltahub.checkpoint import Base
from deltahub.cli import main
from deltahub.delta import Delta
from deltahub.mask import Mask
from tests.tuning.conftest import score_task, word_task, write_text_base

Answer = tuple[int, str, str]
Run = Callable[..., Answer]
QUICK = ("--epochs", "1", "--max-length", "16", "--batch-size", "8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("base"))


def write_rows(path: str, rows: Sequence[dict[str, object]]) -> None:
    Path(path).write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def run(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``deltahub train BASE`` in a folder with words.jsonl and test.jsonl."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / ".cache"))
    for name, rows in (("words", word_task(64, 1)), ("test", word_task(24, 3))):
        write_rows(f"{name}.jsonl", [{"text": t, "label": v} for t, v in zip(rows.texts, rows.labels, strict=True)])

    def call(*arguments: object, of: Path = base.path) -> Answer:
        try:
            code = main(["train", str(of), *(str(argument) for argument in arguments)])
        except SystemExit as exit_:
            code = int(str(exit_.code))
        return (code, *capsys.readouterr())

    return call


def files() -> set[str]:
    return {path.name for path in Path().iterdir() if path.name != ".cache"}


def trained(answer: Answer, path: str) -> Delta:
    """The delta that a command wrote and whose digest it printed."""
    code, out, err = answer
    assert code == 0, err
    delta = Delta.load(path)
    assert out == delta.digest + "\n"
    return delta


def test_a_task_is_written_and_no_state_is_left(run: Run) -> None:
    answer = run("--data", "words.jsonl", "--test", "test.jsonl", *QUICK, "-o", "words.delta")
    delta = trained(answer, "words.delta")
    assert (delta.task, delta.manifest.labels) == ("words", ("high", "low"))
    metrics = delta.manifest.metrics
    assert {"validation_accuracy", "test_accuracy", "test_macro_f1"} <= metrics.keys()
    assert (metrics["train_rows"], metrics["validation_rows"]) == (58, 6)
    assert files() == {"words.jsonl", "test.jsonl", "words.delta"}
    assert answer[2].splitlines()[-1].endswith("push it with `deltahub push`")


def test_numbers_of_pairs_of_texts(run: Run) -> None:
    rows = score_task(64, 1)
    write_rows("pairs.jsonl", [{"a": "w9", "b": t, "n": v} for t, v in zip(rows.texts, rows.labels, strict=True)])
    delta = trained(
        run("--data", "pairs.jsonl", "--kind", "regression", "--text", "a", "--text-pair", "b", "--label", "n",
            "--test", "pairs.jsonl", *QUICK, "-o", "pairs.delta", "--task", "similar"), "pairs.delta",
    )  # fmt: skip
    assert (delta.task, delta.manifest.kind, delta.manifest.labels) == ("similar", "regression", ())
    assert delta.manifest.inputs == {"max_length": 16, "pair": True}
    assert {"validation_spearman", "test_spearman", "test_rmse"} <= delta.manifest.metrics.keys()


def test_options_reach_the_manifest(run: Run) -> None:
    options = ["--method", "hiwi", "--lr", "2e-3", "--head-lr", "0.02", "--accumulate", "2", "--warmup", "0.2",
               "--weight-decay", "0.01", "--max-grad-norm", "0.5", "--seed", "7", "--head", "linear",
               "--pooling", "cls", "--class-weights", "balanced", "--precision", "bf16", "--checkpointing",
               "--bottleneck", "3", "--activation", "tanh", "--layers", "encoder.layer.0.*",
               "encoder.layer.1.*"]  # fmt: skip
    delta = trained(run("--data", "words.jsonl", *QUICK, *options, "-o", "words.delta"), "words.delta")
    told = {name: value for name, value in delta.manifest.method.items() if name not in ("run", "trained_parameters")}
    assert told == {
        "name": "hiwi", "optimizer": "adamw", "schedule": "linear", "epochs": 1, "lr": 2e-3, "head_lr": 0.02,
        "batch_size": 8, "accumulate": 2, "max_length": 16, "warmup": 0.2, "weight_decay": 0.01, "max_grad_norm": 0.5,
        "seed": 7, "head": "linear", "pooling": "cls", "class_weights": "balanced", "precision": "bf16",
        "checkpointing": True, "bottleneck": 3, "activation": "tanh",
        "layers": ["encoder.layer.0.*", "encoder.layer.1.*"],
    }  # fmt: skip


def test_a_text_that_is_longer_than_the_model_takes_is_cut(run: Run) -> None:
    write_rows("long.jsonl", [{"text": "w1 w2 " * 200, "label": label} for label in "abab"])
    delta = trained(run("--data", "long.jsonl", "--max-length", 32, "--epochs", 1, "-o", "long.delta"), "long.delta")
    assert delta.manifest.inputs["max_length"] == 32


def test_an_earlier_state_is_neither_overwritten_nor_taken_unasked(run: Run) -> None:
    state = Path("words.delta.state")
    state.mkdir()
    (state / "run.json").write_text("{}")
    code, out, err = run("--data", "words.jsonl", *QUICK, "-o", "words.delta")
    assert (code, out) == (2, "")
    assert err == (
        "deltahub: words.delta.state holds an earlier run; go on with it by --resume, or delete it to start anew\n"
    )
    code, out, err = run("--data", "words.jsonl", *QUICK, "-o", "words.delta", "--resume")
    assert (code, out) == (1, "")
    assert "the run in words.delta.state has another " in err
    assert (state / "run.json").read_text() == "{}"


def test_a_folder_of_something_else_is_not_removed(run: Run) -> None:
    state = Path("words.delta.state")
    state.mkdir()
    (state / "thesis.txt").write_text("all of it")
    code, out, err = run("--data", "words.jsonl", *QUICK, "-o", "words.delta", "--resume")
    assert (code, out) == (2, "")
    assert "is not empty and holds no run" in err
    assert (state / "thesis.txt").read_text() == "all of it"


def test_a_state_that_was_named_is_kept(run: Run) -> None:
    first = trained(run("--data", "words.jsonl", *QUICK, "--state", "runs", "-o", "words.delta"), "words.delta")
    assert Path("runs/run.json").exists()
    again = trained(run("--data", "words.jsonl", *QUICK, "--state", "runs", "--resume", "-o", "b.delta"), "b.delta")
    assert again.tensors == first.tensors


REFUSED: list[tuple[list[str], int, str]] = [
    (["--method", "lora"], 2, "method 'lora': expected one of pafi"),
    (["--method", "pafi+random"], 2, "expected one mask"),
    (["--max-length", "33"], 2, "max_length: expected at most 32"),
    (["--max-length", "2"], 2, "max_length: expected at least 3"),
    (["--epochs", "0"], 2, "epochs: expected a whole number, 1 or more, found 0"),
    (["--device", "abacus"], 2, "device 'abacus'"),
    (["--mask", "other.mask"], 1, "mask was made on base"),
    (["--mask", "nothing.mask"], 1, "nothing.mask"),
    (["--method", "head", "--mask", "mine.mask"], 2, "method 'head' trains no values"),
    (["--data", "one.jsonl"], 1, "one.jsonl has one class only"),
    (["--validation", "unseen.jsonl"], 1, "unseen.jsonl, line 2"),
    (["--test", "unseen.jsonl"], 1, "unseen.jsonl, line 2"),
    (["--test", "nothing.jsonl"], 1, "cannot read nothing.jsonl"),
    (["--text", "body"], 1, "lacks 'body'"),
    (["--kind", "regression"], 1, "words.jsonl, line 1"),
    (["--kind", "regression", "--data", "numbers.jsonl", "--class-weights", "balanced"], 2, "class weights"),
    (["--task", "A B"], 2, "task name"),
    (["--lr", "nan"], 2, "lr: expected 0 or more, found nan"),
    (["--layers", "encoder.layer.7.*", "--method", "hiwi"], 2, "match no feed-forward"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), REFUSED, ids=lambda part: " ".join(part) if isinstance(part, list) else ""
)
def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(
    run: Run, base: Base, tmp_path_factory: pytest.TempPathFactory, arguments: list[str], code: int, said: str
) -> None:
    write_rows("one.jsonl", [{"text": "w1", "label": "a"}] * 4)
    write_rows("unseen.jsonl", [{"text": "w1", "label": "high"}, {"text": "w2", "label": "middle"}])
    write_rows("numbers.jsonl", [{"text": "w1", "label": number} for number in range(6)])
    if "other.mask" in arguments:
        Mask.build(write_text_base(tmp_path_factory.mktemp("other"), "roberta"), 0.1).save("other.mask")
    if "mine.mask" in arguments:
        Mask.build(base, 0.1).save("mine.mask")
    before = files()
    found, out, err = run("--data", "words.jsonl", *QUICK, "-o", "words.delta", *arguments)
    assert (found, out) == (code, ""), err
    assert said in err
    assert err.count("\n") == 1, err
    assert files() == before
