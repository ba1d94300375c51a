"""tools/mixed: what the benchmark of mixed batches times is what it says, and nothing wrong is timed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deltahub.mixing import Mixer
from deltahub.mixing.products import Batch, PlainProducts
from tests.tuning.conftest import write_text_base

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
pytest.importorskip("peft")
from mixed import checking, memory  # noqa: E402
from mixed.checking import WrongError  # noqa: E402
from mixed.made import KINDS, Made  # noqa: E402
from mixed.speed import DEDICATED, Rows, Way  # noqa: E402

RIGHT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=torch.float64)
WAYS = [DEDICATED, "bare pass", *KINDS, "one by one", "PEFT LoRA", "block diagonal"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("base")
    write_text_base(folder)
    return Made(folder, torch.device("cpu"), density=0.1)


@pytest.fixture(scope="module")
def ways(made: Made) -> dict[str, Way]:
    rows = Rows(made, 3)
    with torch.inference_mode():
        return dict(rows.ways(made.encoded(rows.dedicated, 3, 7))[0])


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_each_row_the_answer_of_its_own_task(ways: dict[str, Way], name: str) -> None:
    way = ways[name]
    with torch.inference_mode():
        found = way.scores(way.run())
    checking.check(name, found, way.wanted)
    with pytest.raises(WrongError, match=name):
        checking.check(name, found.roll(1, 0), way.wanted)


def test_no_way_is_left_out(ways: dict[str, Way]) -> None:
    assert list(ways) == WAYS


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("by", [1.1e-5, -1.1e-5, float("nan")])
def test_an_answer_further_off_than_the_tolerance_is_wrong(row: int, by: float) -> None:
    found = RIGHT.clone()
    found[row, 2] += by
    with pytest.raises(WrongError, match="masked"):
        checking.check("masked", found, RIGHT)


def test_an_answer_within_the_tolerance_is_right() -> None:
    assert checking.check("masked", RIGHT - 0.9e-5, RIGHT) == pytest.approx(0.9e-5)


def test_a_check_that_the_base_would_pass_is_refused() -> None:
    """One row whose values change next to nothing is enough."""
    bare = RIGHT + torch.tensor([[0.1], [9e-5]])
    with pytest.raises(WrongError, match="no check can tell"):
        checking.check_telling("masked", RIGHT, bare)
    assert checking.check_telling("masked", RIGHT[:1], bare[:1]) == pytest.approx(0.1)


class Forgetful(PlainProducts):
    """The last task gets the base's values."""

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        return super().batch([*tasks[:-1], None], starts, plain)


def test_products_are_compared_with_float64(made: Made) -> None:
    assert 0 < checking.check_products(made.mixer, 3, 5) < 1e-5
    with pytest.raises(WrongError, match="a sum is off"):
        checking.check_products(Mixer(made.resident, made.tokenizer, Forgetful()), 3, 5)


def test_memory_by_formula_is_values_once_heads_twice_and_the_pattern(made: Made) -> None:
    held = memory.measure(made, 5)
    assert held["values"] == 5 * made.mask.k * 4
    assert held["heads"] == 5 * 2 * 3 * (made.base.config["hidden_size"] + 1) * 4
    assert held["pattern"] == made.mixer.nbytes
    assert held["formula"] == held["values"] + held["heads"] + held["pattern"]
    assert held["formula"] <= held["counted"] < 2 * held["formula"]
