"""The compiled products: those of exact mathematics but for rounding, the same by any number of threads."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deltahub.mixing.products import Batch, Pattern, fastest
from deltahub.mixing.sites import Site

pytest.importorskip("llvmlite", reason="an extra")

from deltahub.mixing import cpu
from deltahub.mixing.cpu import TILE, CompiledProducts
from deltahub.mixing.kernel import Kernel

ZONE = 4096
"""Numbers before and after an output that nothing may write: more than a tile of tokens."""


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    kernel = Kernel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "Kernel", lambda: kernel)
        yield


@dataclass(frozen=True)
class Case:
    """Two matrices and the tasks of a batch."""

    patterns: list[Pattern]
    starts: list[int]
    values: list[torch.Tensor | None]
    plain: set[tuple[str, int]]
    tokens: int
    biases: torch.Tensor | None
    shift: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    made = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    patterns, first = [], draw(st.integers(0, 5))
    for number in range(2):
        outputs, inputs = draw(st.integers(TILE, 70)), draw(st.integers(TILE, 70))
        masked = torch.rand(outputs, inputs, generator=made) < draw(st.sampled_from([0.0, 0.05, 0.5]))
        for _ in range(draw(st.integers(0, 3))):
            masked[draw(st.integers(0, outputs - 1))] = draw(st.booleans())
        local = masked.view(-1).nonzero()[:, 0]
        weight = nn.Linear(inputs, outputs, bias=False)
        part = slice(first, first := first + len(local))
        patterns.append(Pattern.of(Site(f"m{number}", weight, "weight", part, local)))
    rows = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    values = [torch.randn(first + 3, generator=made) if draw(st.integers(0, 3)) else None for _ in rows]
    plain = draw(st.sets(st.tuples(st.sampled_from(["m0", "m1", "elsewhere"]), st.integers(0, len(rows) - 1))))
    width = max(pattern.site.tensor.shape[0] for pattern in patterns)
    lines = torch.randn(len(rows), width + 9, generator=made) if draw(st.booleans()) else None
    tokens = draw(st.integers(1, 70))
    return Case(patterns, [0, *accumulate(rows)], values, plain, tokens, lines, draw(st.integers(0, 9)))


def biases_of(case: Case, pattern: Pattern) -> torch.Tensor | None:
    """A part of longer lines, as passes have them."""
    return None if case.biases is None else case.biases[:, case.shift :][:, : pattern.site.tensor.shape[0]]


def inputs_of(case: Case, pattern: Pattern) -> tuple[torch.Tensor, torch.Tensor]:
    """States, and what is in the output before, with a zone on both sides."""
    outputs, inputs = pattern.site.tensor.shape
    made, count = torch.Generator().manual_seed(outputs), case.starts[-1] * case.tokens
    return torch.randn(count, inputs, generator=made), torch.randn(2 * ZONE + count * outputs, generator=made)


def added(batch: Batch, case: Case, pattern: Pattern) -> torch.Tensor:
    """The whole memory around the output."""
    states, memory = inputs_of(case, pattern)
    out = memory[ZONE:-ZONE].view(len(states), -1)
    batch.add(pattern, states, out, biases_of(case, pattern))
    return memory


def found(case: Case, threads: int = 2) -> list[torch.Tensor]:
    held = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        batch = CompiledProducts(case.patterns).batch(case.values, case.starts, case.plain)
        return [added(batch, case, pattern) for pattern in case.patterns]
    finally:
        torch.set_num_threads(held)


@given(cases())
def test_products_are_exact_but_for_rounding(case: Case) -> None:
    """Within what float32 sums of so many terms can be off; and nothing beside the output is written."""
    for pattern, memory in zip(case.patterns, found(case), strict=True):
        states, before = inputs_of(case, pattern)
        assert torch.equal(memory[:ZONE], before[:ZONE])
        assert torch.equal(memory[-ZONE:], before[-ZONE:])
        right = before[ZONE:-ZONE].view(len(states), -1).double()
        size, biases = right.abs(), biases_of(case, pattern)
        for number, (start, stop) in enumerate(pairwise(case.starts)):
            rows, values = slice(start * case.tokens, stop * case.tokens), case.values[number]
            if biases is not None:
                right[rows] += biases[number].double()
                size[rows] += biases[number].abs()
            if values is not None and (pattern.site.name, number) not in case.plain:
                change = torch.zeros(pattern.site.tensor.shape, dtype=torch.float64)
                change.view(-1)[pattern.site.local] = values[pattern.site.part].double() - pattern.base.double()
                right[rows] += states[rows].double() @ change.t()
                size[rows] += states[rows].abs().double() @ change.t().abs()
        off = (memory[ZONE:-ZONE].view(len(states), -1).double() - right).abs()
        assert (off <= size * 2.0**-23 * (states.shape[1] + 4)).all()


@given(cases())
def test_threads_do_not_change_a_bit(case: Case) -> None:
    assert all(map(torch.equal, found(case, threads=1), found(case, threads=2)))


@given(cases())
def test_one_batch_takes_the_matrices_in_any_order_and_again(case: Case) -> None:
    batch = CompiledProducts(case.patterns).batch(case.values, case.starts, case.plain)
    one = [added(batch, case, pattern) for pattern in case.patterns]
    other = [added(batch, case, pattern) for pattern in reversed(case.patterns)]
    assert all(map(torch.equal, one, reversed(other)))


def test_what_is_read_stays_as_it_is() -> None:
    torch.manual_seed(0)
    [pattern] = patterns_of((20, 33))
    values, states, biases = torch.randn(len(pattern.base)), torch.randn(6, 33), torch.randn(2, 20)
    read = [values, states, biases, pattern.base, pattern.indices, pattern.indptr, pattern.site.tensor]
    before = [tensor.clone() for tensor in read]
    CompiledProducts([pattern]).batch([values, None], [0, 1, 2], set()).add(pattern, states, torch.zeros(6, 20), biases)
    assert all(map(torch.equal, read, before))


def test_products_keep_what_the_kernel_reads_by_address() -> None:
    patterns = patterns_of((64, 64))
    read = [weakref.ref(tensor) for tensor in (patterns[0].base, patterns[0].indices)]
    products = CompiledProducts(patterns)
    del patterns
    assert None not in [one() for one in read]
    assert products.name == "compiled"


@pytest.mark.parametrize(("shape", "name"), [((16, 16), "compiled"), ((15, 64), "torch"), ((64, 15), "torch")])
def test_a_matrix_narrower_than_a_tile_is_left_to_torch(shape: tuple[int, int], name: str) -> None:
    assert fastest(patterns_of((32, 32), shape)).name == name


def patterns_of(*shapes: tuple[int, int]) -> Sequence[Pattern]:
    """Every third position of each matrix."""
    patterns, first = [], 0
    for number, (outputs, inputs) in enumerate(shapes):
        local = torch.arange(0, outputs * inputs, 3)
        part = slice(first, first := first + len(local))
        module = nn.Linear(inputs, outputs, bias=False)
        patterns.append(Pattern.of(Site(f"m{number}", module, "weight", part, local)))
    return patterns
