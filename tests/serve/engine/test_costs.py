"""What passes are thought to cost, and the choice that follows."""

from __future__ import annotations

import itertools

import pytest
from deltahub_serve.costs import Costs, fit
from deltahub_serve.runner import Runner
from hypothesis import given
from hypothesis import strategies as st

from deltahub import Base, Mask, Mixer, Resident
from deltahub.heads import load_tokenizer
from tests.models import bits, same_bits

COSTS = Costs(swap=0.002, forward=((16, 0.007), (256, 0.028), (1024, 0.094)), mixing=(0.002, 0.00001, 0.0001))


def test_a_pass_costs_what_was_measured_and_a_straight_line_between_and_beyond() -> None:
    assert [COSTS.merged(tokens) for tokens in (1, 16, 256, 1024)] == [0.007, 0.007, 0.028, 0.094]
    assert COSTS.merged(640) == pytest.approx((0.028 + 0.094) / 2)
    assert COSTS.merged(1792) == pytest.approx(0.094 + (0.094 - 0.028))


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_more_tokens_never_cost_less(one: int, other: int) -> None:
    assert COSTS.merged(min(one, other)) <= COSTS.merged(max(one, other))


@pytest.mark.parametrize(
    ("groups", "in_place", "together"),
    [
        ([[16]] * 16, None, True),  # many short texts of many tasks
        ([[16], [16]], None, True),
        ([[1024], [1024]], None, False),  # long ones hardly share anything
        ([[16] * 8, [16]], 0, True),
        ([[16] * 31, [16]], 0, False),  # one text would make all the others take longer
    ],
)
def test_sharing_pays_where_passes_are_short(groups: list[list[int]], in_place: int | None, together: bool) -> None:
    assert COSTS.together(groups, in_place=in_place, on_base=False) is together


def test_costs_are_measured_and_the_base_is_as_before(base: Base) -> None:
    resident, tokenizer = Resident.load(base, Mask.build(base, 0.05)), load_tokenizer(base)
    before = bits(resident.module)
    costs = fit(Runner(resident, Mixer(resident, tokenizer)), tokenizer)
    assert same_bits(before, bits(resident.module))
    assert resident.stamp is None
    assert costs.swap > 0
    seconds = [took for _, took in costs.forward]
    assert len(seconds) > 1
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    assert min(costs.mixing) >= 0
    assert sum(costs.mixing) > 0


def test_a_slow_machine_times_two_sizes_only(base: Base) -> None:
    resident, tokenizer = Resident.load(base, Mask.build(base, 0.05)), load_tokenizer(base)
    ticks = itertools.count(step=10.0)
    costs = fit(Runner(resident, Mixer(resident, tokenizer)), tokenizer, clock=lambda: next(ticks))
    assert len(costs.forward) == 2
    assert costs.swap == 10.0


def test_a_resident_without_a_mask_is_measured_too(base: Base) -> None:
    resident, tokenizer = Resident.load(base, None), load_tokenizer(base)
    costs = fit(Runner(resident, Mixer(resident, tokenizer)), tokenizer)
    assert set(costs.as_dict()) == {"swap_ms", "forward_ms", "mixing_ms"}
