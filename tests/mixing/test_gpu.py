"""The products of the Triton kernel, run by Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deltahub.mixing.products import Pattern, PlainProducts, Products, fastest
from deltahub.mixing.sites import Site

triton = pytest.importorskip("triton", reason="triton is for Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402

from deltahub.mixing import gpu  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Of one number, relative; the interpreter cuts bfloat16 off where a GPU rounds it."""
STARTS = [0, 1, 3, 7, 8, 9]
SHAPES = [(37, 23), (16, 48)]
PLAIN = {("m0", 0), ("m1", 2), ("elsewhere", 1)}


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: triton asks for its interpreter once, when it is imported."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert pool.submit(is_interpreted).result()
        yield pool


def is_interpreted() -> bool:
    torch.set_num_threads(1)
    return type(gpu._add).__name__ == "InterpretedFunction"


@dataclass(frozen=True)
class Case:
    """Matrices and tasks of a batch; the fourth task has no values."""

    patterns: list[Pattern]
    tasks: list[torch.Tensor | None]
    states: list[torch.Tensor]
    outs: list[torch.Tensor]
    biases: list[torch.Tensor | None]


def make(dtype: torch.dtype, tokens: int, device: str = "cpu", shapes: Sequence[tuple[int, int]] = SHAPES) -> Case:
    """Of every matrix some outputs have no position and one has all; one matrix has no biases."""
    torch.manual_seed(tokens)
    patterns, first = [], 3
    for number, (outputs, inputs) in enumerate(shapes):
        masked = torch.rand(outputs, inputs) < 0.1
        masked[::5] = False
        masked[7] = True
        local = masked.view(-1).nonzero()[:, 0]
        module = nn.Linear(inputs, outputs).to(device, dtype)
        part = slice(first, first := first + len(local))
        patterns.append(Pattern.of(Site(f"m{number}", module, "weight", part, local.to(device))))
    count = len(STARTS) - 1
    tasks = [None if number == 3 else torch.randn(first + 2).to(device, dtype) for number in range(count)]
    rows = STARTS[-1] * tokens
    lines = torch.randn(count, 3 + max(out for out, _ in shapes)).to(device, dtype)
    return Case(
        patterns, tasks,
        states=[torch.randn(rows, inputs).to(device, dtype) for _, inputs in shapes],
        outs=[torch.randn(rows, outputs).to(device, dtype) for outputs, _ in shapes],
        biases=[None if number == 1 else lines[:, 3 : 3 + out] for number, (out, _) in enumerate(shapes)],
    )  # fmt: skip


def found(products: Products, case: Case) -> list[torch.Tensor]:
    batch = products.batch(case.tasks, STARTS, PLAIN)
    outs = [out.clone() for out in case.outs]
    for pattern, states, out, biases in zip(case.patterns, case.states, outs, case.biases, strict=True):
        batch.add(pattern, states, out, biases)
    return outs


def exact(case: Case) -> list[torch.Tensor]:
    """In float64."""
    outs = [out.double() for out in case.outs]
    for pattern, states, out, biases in zip(case.patterns, case.states, outs, case.biases, strict=True):
        tokens, site = len(states) // STARTS[-1], pattern.site
        for number, ((start, stop), values) in enumerate(zip(pairwise(STARTS), case.tasks, strict=True)):
            rows = slice(start * tokens, stop * tokens)
            if biases is not None:
                out[rows] += biases[number].double()
            if values is not None and (site.name, number) not in PLAIN:
                change = torch.zeros(site.tensor.shape, dtype=torch.float64, device=out.device)
                change.view(-1)[site.local] = values[site.part].to(site.tensor).double() - pattern.base.double()
                out[rows] += states[rows].double() @ change.t()
    return outs


def check_exact(dtype: torch.dtype, tokens: int, device: str = "cpu") -> None:
    """Sums are taken in float32 whatever the dtype, and rounded once."""
    case = make(dtype, tokens, device)
    for mine, right, before in zip(found(gpu.TritonProducts(case.patterns), case), exact(case), case.outs, strict=True):
        assert mine.dtype == dtype
        assert (right - before).abs().max() > 1, "nothing was added: nothing was tested"
        assert ((mine - right).abs() <= ROUNDING[dtype] * right.abs() + 2e-5).all()


@pytest.mark.parametrize("tokens", [1, 7, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_exact_but_for_one_rounding(
    interpreter: ProcessPoolExecutor, dtype: torch.dtype, tokens: int
) -> None:
    interpreter.submit(check_exact, dtype, tokens).result()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_exact_on_a_gpu(dtype: torch.dtype) -> None:
    for tokens in (1, 7, 64):
        check_exact(dtype, tokens, "cuda")


def check_plain(dtype: torch.dtype) -> None:
    case = make(dtype, 7)
    plain = found(PlainProducts(), case)
    for mine, right in zip(found(gpu.TritonProducts(case.patterns), case), plain, strict=True):
        few = 1e-5 if dtype == torch.float32 else 16 * ROUNDING[dtype]  # the plain way rounds every step
        torch.testing.assert_close(mine, right, rtol=few, atol=few)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_those_of_the_plain_way(interpreter: ProcessPoolExecutor, dtype: torch.dtype) -> None:
    interpreter.submit(check_plain, dtype).result()


def check_untouched() -> None:
    case = make(torch.float32, 7)
    for number, out in enumerate(found(gpu.TritonProducts(case.patterns), case)):
        biases = case.biases[number]
        plain = {3, *(task for name, task in PLAIN if name == f"m{number}")}
        for task, (start, stop) in enumerate(pairwise(STARTS)):
            mine, before = (whole[start * 7 : stop * 7] for whole in (out, case.outs[number]))
            assert torch.equal(mine, before if biases is None else before + biases[task]) == (task in plain)


def test_rows_where_the_bases_values_stay_get_their_bias_alone(interpreter: ProcessPoolExecutor) -> None:
    """Bit for bit."""
    interpreter.submit(check_untouched).result()


def check_rounded() -> None:
    case = make(torch.bfloat16, 7)
    wide = [None if task is None else torch.randn(len(task)) for task in case.tasks]
    rounded = [None if task is None else task.bfloat16() for task in wide]
    products = gpu.TritonProducts(case.patterns)
    one, other = (
        found(products, Case(case.patterns, tasks, case.states, case.outs, case.biases)) for tasks in (wide, rounded)
    )
    assert all(map(torch.equal, one, other))


def test_wider_values_are_rounded_as_a_swap_rounds_them(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_rounded).result()


def check_mixer(folder: Path) -> None:
    from deltahub.backbone import load_backbone
    from deltahub.heads import load_tokenizer
    from deltahub.mask import Mask
    from deltahub.mixing import Mixer
    from deltahub.resident import Resident
    from deltahub.task_model import TaskModel
    from tests.mixing.test_mixer import KINDS, check, rows_of
    from tests.tasks import random_task
    from tests.tuning.conftest import write_text_base

    base = write_text_base(folder)
    mask = Mask.build(base, density=0.1)
    resident, tokenizer = Resident(load_backbone(base), base, mask), load_tokenizer(base)
    models = [
        TaskModel(resident, tokenizer, random_task(base, mask, kind, task=kind, seed=seed))
        for seed, kind in enumerate(KINDS)
    ]
    patterns = Mixer(resident, tokenizer, PlainProducts()).patterns
    mixer = Mixer(resident, tokenizer, gpu.TritonProducts(patterns))
    rows = rows_of(mixer, models)
    check(resident, mixer, [*rows, (rows[1][0], rows[1][1])])


def test_a_mixed_pass_gives_the_answers_of_swapped_ones(interpreter: ProcessPoolExecutor, tmp_path: Path) -> None:
    interpreter.submit(check_mixer, tmp_path).result()


class Device:
    """Stands in for the driver of a GPU that is not there: enough to compile for it."""

    number = 99

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_that_batches_need_is_compiled_beforehand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
) -> None:
    """For a real target: the interpreter takes more than the compiler does."""
    kernel, launch = gpu._add, type(gpu._add).run
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", Device())
    monkeypatch.setattr(kernel, "run", lambda *args, **options: launch(kernel, *args, **{**options, "warmup": True}))
    monkeypatch.delitem(kernel.device_caches, Device.number, raising=False)
    products = gpu.TritonProducts(make(dtype, 1).patterns)
    [compiled, *_] = kernel.device_caches[Device.number]
    before = list(compiled)
    assert before
    assert all(".target sm_80" in one.asm["ptx"] for one in compiled.values())
    for tokens in (1, 7, 16):
        found(products, make(dtype, tokens))
    assert list(compiled) == before


def pattern(dtype: torch.dtype) -> Any:
    """As much of one on a GPU as the choice looks at."""
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(64, 64))
    return SimpleNamespace(site=SimpleNamespace(tensor=weight))


@pytest.mark.parametrize(
    ("dtype", "usable", "name"),
    [
        (torch.float32, True, "triton"),
        (torch.bfloat16, True, "triton"),
        (torch.float16, True, "triton"),
        (torch.float64, True, "torch"),
        (torch.float16, False, "torch"),
    ],
    ids=str,
)
def test_the_kernel_is_taken_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, usable: bool, name: str
) -> None:
    monkeypatch.setattr(gpu, "usable", lambda: usable)
    monkeypatch.setattr(gpu.TritonProducts, "__init__", lambda *_: None)
    assert fastest([pattern(dtype)]).name == name


def test_without_triton_products_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deltahub.mixing.gpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert fastest([pattern(torch.float32)]).name == "torch"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_is_never_taken_on_a_cpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(gpu, "usable", lambda: True)
    assert fastest(make(dtype, 1).patterns).name != "triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_device_the_kernel_is_not_usable() -> None:
    assert not gpu.usable()
