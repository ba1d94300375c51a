"""Many tasks of one YAML file: what is trained, pushed and shown, and what a second call leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltahub.checkpoint import Base
from deltahub.cli import main
from deltahub.hub import Hub
from deltahub.tuning.many import train_many
from deltahub.tuning.plan import read_plan
from tests.tuning.conftest import score_task, word_task

Answer = tuple[int, str, str]
Run = Callable[..., Answer]

PLAN = """
base: {base}
hub: ./hub
output: ./deltas
defaults: {{epochs: 2, lr: 1e-2, head_lr: 3e-2, batch_size: 8, max_length: 16, values: int8, tags: [prod]}}
tasks:
  words: {{data: words.jsonl, validation: words-validation.jsonl, test: words-validation.jsonl}}
  broken: {{data: broken.jsonl}}
  numbers: {{data: numbers.jsonl, kind: regression, text_pair: other, label: share, seed: {seed}}}
"""


@pytest.fixture
def folder(text_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    for name, seed, count in (("words", 1, 24), ("words-validation", 2, 8)):
        rows = word_task(count, seed)
        _write(
            tmp_path / f"{name}.jsonl", [{"text": t, "label": v} for t, v in zip(rows.texts, rows.labels, strict=True)]
        )
    numbers = score_task(40, 1)
    _write(
        tmp_path / "numbers.jsonl",
        [{"text": "w9 w8", "other": t, "share": v} for t, v in zip(numbers.texts, numbers.labels, strict=True)],
    )
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "x"}\nnot json\n')
    (tmp_path / "plan.yaml").write_text(PLAN.format(base=text_base.path, seed=0))
    return tmp_path


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*more: str) -> Answer:
        return (main(["train-many", str(folder / "plan.yaml"), *more]), *capsys.readouterr())

    return call


def table(out: str) -> dict[str, str]:
    """Each line under its task."""
    return {line.split()[0]: line for line in out.splitlines()[1:]}


def test_what_can_be_trained_is_pushed_and_compared_and_a_second_call_does_nothing(run: Run, folder: Path) -> None:
    code, out, err = run()
    assert code == 1
    assert err.splitlines()[-1] == "deltahub: 1 of 3 tasks failed: broken; their lines say why"
    assert "broken: failed: " in err
    assert "broken.jsonl, line 2" in err
    first = table(out)
    assert list(first) == ["words", "broken", "numbers"]
    assert first["broken"].split()[2] == "failed"
    assert "words@1" in first["words"]
    assert "spearman" in first["numbers"]
    hub = Hub.open(folder / "hub")
    assert sorted(task.task for task in hub.tasks()) == ["numbers", "words"]
    numbers = hub.pull("numbers:prod")
    assert numbers.manifest.inputs["pair"] is True
    assert "int8" in str(numbers.manifest)
    assert {path.name for path in (folder / "deltas").iterdir()} == {"words.delta", "numbers.delta"}
    before = {path: path.read_bytes() for path in (folder / "deltas").iterdir()}

    code, out, err = run()
    assert code == 1
    second = table(out)
    assert second["words"].endswith("done before")
    assert second["numbers"].endswith("done before")
    assert "epoch" not in err
    assert {path: path.read_bytes() for path in (folder / "deltas").iterdir()} == before
    assert [[v.number for v in hub.versions(task)] for task in ("words", "numbers")] == [[1], [1]]

    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("seed: 0", "seed: 1"))
    code, out, err = run("--json", "--only", "words", "num*")
    assert code == 0, err
    third = {row["task"]: row for row in json.loads(out)}
    assert (third["words"]["seconds"], third["words"]["version"]) == (None, "words@1")
    assert third["numbers"]["seconds"] > 0
    assert third["numbers"]["version"] == "numbers@2"
    assert third["words"]["test"] == third["words"]["validation"]


def test_an_interrupted_task_goes_on_unless_its_settings_have_changed(run: Run, folder: Path) -> None:
    def train(progress: Callable[[int, int], None] | None) -> list[str]:
        plan = read_plan(folder / "plan.yaml", only=["words"])
        lines: list[str] = []
        base = Base.open(plan.base, cache=folder / "cache")
        try:
            train_many(plan, base, say=lines.append, progress=progress)
        except KeyboardInterrupt:
            lines.append("interrupted")
        return [line.partition("  ")[0] for line in lines if line.startswith(("epoch", "interrupted"))]

    def late(done: int, _total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    assert train(late) == ["epoch 1/2", "interrupted"]
    assert train(None) == ["epoch 2/2"]
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("lr: 1e-2", "lr: 2e-2", 1))
    assert train(late) == ["epoch 1/2", "interrupted"]
    plan.write_text(plan.read_text().replace("lr: 2e-2", "lr: 3e-2", 1))
    assert train(None) == ["epoch 1/2", "epoch 2/2"]
    assert [path.name for path in (folder / "deltas").iterdir()] == ["words.delta"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("base: [", "plan.yaml is not valid YAML ("),
        ("base: \xff", "plan.yaml is not valid YAML ("),
        ("- a", "plan.yaml: expected a mapping of names, found list"),
        ("base: b\nbase: c\ntasks: {t: {data: d}}", "plan.yaml is not valid YAML ('base' stands twice"),
        ("base: b\ntasks: {t: {data: d}, t: {data: d}}", "plan.yaml is not valid YAML ('t' stands twice"),
        ("base: b", "plan.yaml: tasks: expected a mapping of names, found NoneType"),
        ("base: b\ntasks: {}", "tasks: expected at least one task, found none"),
        ("base: b\ntask: {t: {data: d}}", "'task' is not known: expected some of base, revision"),
        ("base: b\ndefaults: {epoch: 2}\ntasks: {t: {data: d}}", "'epoch' is not known"),
        ("base: b\ntasks: {t: {data: d, learning: 1}}", "task t: 'learning' is not known"),
        ("base: b\ntasks: {t: {kind: regression}}", "task t: expected data: a file to train on, found none"),
        ("base: b\ntasks: {t: d.jsonl}", "task t: expected a mapping of names, found str"),
        ("base: b\ntasks: {t: {data: d, epochs: two}}", "task t: epochs: expected a whole number"),
        ("base: b\ntasks: {t: {data: d, layers: 3}}", "task t: "),
        ("base: b\ntasks: {t: {data: d, method: lora}}", "task t: method 'lora': expected one of pafi"),
        ("base: b\ntasks: {t: {data: d, values: int9}}", "task t: values: expected exact, bf16, int8 or int4"),
        ("base: b\ntasks: {t: {data: d, kind: poetry}}", "task t: the kind of task: expected one of"),
        ("base: b\ntasks: {t: {data: d, text: [a, b]}}", "task t: text: expected the name of a column"),
        ("base: b\ntasks: {t: {data: d, tags: prod}}", "task t: tags: expected a list, found prod"),
        ("base: b\ntasks: {t: {data: d, tags: [A B]}}", "task t: tag"),
        ("base: b\ntasks: {A B: {data: d}}", "task A B: task name"),
        ("tasks: {t: {data: d}}", "plan.yaml names no base: expected base: FOLDER or model id"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_meant_is_one_line(run: Run, folder: Path, plan: str, said: str) -> None:
    (folder / "plan.yaml").write_bytes(plan.encode("latin-1"))
    code, out, err = run()
    assert code in (1, 2), err
    assert out == ""
    assert err.startswith("deltahub: ")
    assert err.count("\n") == 1
    assert said in err


def test_no_plan_and_no_task_of_a_name_are_one_line(run: Run, folder: Path) -> None:
    assert run("--only", "nothing") == (2, "", "deltahub: --only nothing: expected some of words, broken, numbers\n")
    (folder / "plan.yaml").unlink()
    code, out, err = run()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "cannot read" in err
