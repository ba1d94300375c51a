"""What the README says of training is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from deltahub.names import KINDS
from deltahub.tuning.methods import METHODS
from deltahub.tuning.metrics import PRIMARY
from deltahub.tuning.plan import read_plan

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def table(head: str) -> dict[str, list[str]]:
    """First cell, without marks, to the others, of the table whose head begins so."""
    rows = re.search(rf"^\| `{head}`.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert rows is not None
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1].splitlines()]
    return {first.split("`")[1]: rest for first, *rest in cells}


def test_every_method_is_listed_with_its_learning_rate() -> None:
    listed = {name: float(cells[-1] or 0) for name, cells in table("--method").items()}
    assert listed == {name: method.lr for name, method in METHODS.items()}


def test_every_kind_is_listed_with_its_score() -> None:
    listed = table("--kind")
    assert set(listed) == set(KINDS) & set(PRIMARY)
    spelled = {"mrr": "mean reciprocal rank"}
    for kind, score in PRIMARY.items():
        assert spelled.get(score, score.replace("_", " ")) in listed[kind][-1].lower()


def test_the_example_of_many_tasks_can_be_read(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    (tmp_path / "tasks.yaml").write_text(example[1], encoding="utf-8")
    plan = read_plan(tmp_path / "tasks.yaml")
    assert [(job.task, job.method) for job in plan.jobs] == [
        ("topic", "pafi"), ("object", "hiwi"), ("markup", "pafi"), ("same", "pafi"),
    ]  # fmt: skip
