"""Each attack ends in one typed error or does no harm, in bounded memory and time, with nothing written elsewhere."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from deltahub import errors
from tests.attacks import table
from tests.attacks.sandbox import Outcome, outcomes
from tests.attacks.table import ATTACKS, ELSEWHERE, attack_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    return outcomes(ATTACKS, tmp_path_factory.mktemp("attacks"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_or_harmless(made: dict[int, Outcome], attack):
    assert attack.number in made, "it hung, or the process died"
    outcome = made[attack.number]
    assert outcome.ours, outcome.message
    found = getattr(errors, outcome.error) if outcome.error else None
    assert (found is None) == (attack.error is None), outcome.message
    assert found is None or issubclass(found, attack.error), outcome.message
    assert len(outcome.message) < 2100
    assert "\n" not in outcome.message
    assert outcome.changed == ()
    assert not outcome.leaked
    assert outcome.peak <= attack.memory


def test_numbers_are_used_once():
    counts = Counter(row.number for row in [*ATTACKS, *ELSEWHERE])
    assert max(counts.values()) == 1


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row.name)
def test_what_other_tests_try_is_there(row):
    file, _, name = row.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_readme_has_the_table():
    text = (ROOT / "tests" / "README.md").read_text()
    assert table.section(text) == attack_table(), "run `python -m tests.attacks.table --write`"
