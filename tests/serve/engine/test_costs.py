"""What passes are thought to cost, and the choice that follows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from deltahub_serve.costs import Choice, Costs, fit
from deltahub_serve.runner import Runner
from hypothesis import given
from hypothesis import strategies as st

from deltahub import Base, Mask, Mixer, Resident
from deltahub.heads import load_tokenizer
from tests.models import bits, same_bits

COSTS = Costs(swap=0.002, forward=((16, 0.007), (256, 0.028), (1024, 0.094)), mixing=(0.002, 0.00001, 0.0001))


def test_a_pass_costs_what_was_measured_and_a_straight_line_between_and_beyond() -> None:
    assert [COSTS.swapped(tokens) for tokens in (1, 16, 256, 1024)] == [0.007, 0.007, 0.028, 0.094]
    assert COSTS.swapped(640) == pytest.approx((0.028 + 0.094) / 2)
    assert COSTS.swapped(1792) == pytest.approx(0.094 + (0.094 - 0.028))


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_more_tokens_never_cost_less(one: int, other: int) -> None:
    assert COSTS.swapped(min(one, other)) <= COSTS.swapped(max(one, other))


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
    assert Choice(COSTS).together(groups, in_place=in_place, on_base=False) is together


SHORT = [[16]] * 4


def chosen(choice: Choice, times: int = 400) -> float:
    """The share of mixed passes among ``times`` choices for many short texts, each followed by what passes take."""
    mixed = 0
    for _ in range(times):
        together = choice.together(SHORT, in_place=None, on_base=True)
        mixed += together
        if together:
            choice.took(64, 4, False, COSTS.mixed(64, 4))
        else:
            for _ in SHORT:
                choice.took(16, 1, True, COSTS.swapped(16) + COSTS.swap)
    return mixed / times


def test_the_dearer_way_is_tried_now_and_then() -> None:
    assert 0.97 < chosen(Choice(COSTS)) < 1


def test_a_start_on_a_busy_machine_is_made_good() -> None:
    """Mixing looked dear when it was measured: passes show that it is not."""
    choice = Choice(replace(COSTS, mixing=(0.0, 0.001, 0.0)))
    assert not choice.together(SHORT, in_place=None, on_base=True)
    assert chosen(choice) > 0.2
    assert chosen(choice) > 0.97


def test_what_is_dearer_by_far_is_not_tried() -> None:
    choice = Choice(replace(COSTS, mixing=(0.0, 0.01, 0.0)))  # 0.65 s against 0.04
    assert chosen(choice) == 0


def test_one_pass_that_was_held_up_changes_little() -> None:
    choice = Choice(COSTS)
    choice.took(64, 4, False, 60.0)
    assert choice.together(SHORT, in_place=None, on_base=True)


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
