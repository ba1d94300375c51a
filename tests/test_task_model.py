from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import TooLongError, UsageError
from deltahub.heads import head_names, load_tokenizer
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

KINDS = ["text-classification", "multi-label-classification", "regression", "token-classification", "embeddings"]
MATRIX = "encoder.layer.0.output.dense.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("task-model"))


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    return Mask.build(base, density=0.1)


def on(resident: Resident, delta: Delta) -> TaskModel:
    return TaskModel(resident, load_tokenizer(resident.base), delta)


def with_factors(base: Base, delta: Delta) -> Delta:
    rows, columns = base.space.by_name[MATRIX].shape
    torch.manual_seed(0)
    factors = {"up": torch.randn(rows, 2) * 0.1, "down": torch.randn(2, columns) * 0.1}
    tensors = {f"adapter.{MATRIX}.{part}": RawTensor.of_torch(tensor) for part, tensor in factors.items()}
    return Delta(delta.manifest, {**delta.tensors, **tensors})


def test_a_text_that_is_too_long_is_cut_or_refused_by_its_number(base: Base, mask: Mask) -> None:
    resident = Resident(load_backbone(base), base, mask)
    texts = ["w1", "w2 w3", " ".join(["w4"] * 9)]
    for kind in KINDS:
        model = on(resident, random_task(base, mask, kind, task="topic", inputs={"max_length": 8}))
        assert len(model.prepare(texts)[2].tokens["input_ids"]) == 8
        assert model.prepare(texts[:2], truncate=False) == model.prepare(texts[:2])
        message = "text 3 has 11 tokens, topic takes 8; cut it, or ask with truncate"
        with pytest.raises(TooLongError, match=message) as found:
            model.prepare(texts, truncate=False)
        assert (found.value.tokens, found.value.limit) == (11, 8)
        assert isinstance(found.value, UsageError)


def test_a_pair_counts_as_one(base: Base, mask: Mask) -> None:
    inputs = {"max_length": 8, "pair": True}
    model = on(Resident(load_backbone(base), base, mask), random_task(base, mask, "regression", inputs=inputs))
    whole = len(model.prepare(["w1 w2 w3"], ["w4 w5"], truncate=False)[0].tokens["input_ids"])
    assert whole <= 8
    with pytest.raises(TooLongError, match=f"text 1 has {whole + 6} tokens, task takes 8"):
        model.prepare(["w1 w2 w3"], [" ".join(["w4"] * 8)], truncate=False)


def test_a_task_counts_the_memory_that_it_keeps(base: Base, mask: Mask, tmp_path: Path) -> None:
    resident = Resident(load_backbone(base), base, mask)
    plain = random_task(base, mask, "text-classification")
    stored = sum(raw.data.nbytes for raw in plain.tensors.values())
    head = sum(raw.data.nbytes for raw in plain.raw("head").values())
    assert on(resident, plain).nbytes == stored + head
    factored = with_factors(base, plain)
    product = base.space.by_name[MATRIX].size * 4
    factors = sum(raw.data.nbytes for raw in factored.raw("adapter").values())
    assert on(resident, factored).nbytes == stored + head + factors + product
    embeddings = random_task(base, mask, "embeddings")
    assert on(resident, embeddings).nbytes == mask.k * 4


def test_low_rank_factors_are_multiplied_once(base: Base, mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltahub import dense

    resident = Resident(load_backbone(base), base, mask)
    made, low_rank = [], dense.low_rank
    monkeypatch.setattr(dense, "low_rank", lambda *factors: made.append(1) or low_rank(*factors))
    model = on(resident, with_factors(base, random_task(base, mask, "text-classification")))
    for _ in range(3):
        resident.swap(model.prepared)
        resident.restore()
    assert len(made) == 1


@pytest.mark.parametrize("kind", KINDS[:4])
def test_many_threads_load_while_each_task_keeps_its_own_head(base: Base, mask: Mask, kind: str) -> None:
    resident = Resident(load_backbone(base), base, mask)
    deltas = [random_task(base, mask, kind, task=f"task{seed}", seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda number: on(resident, deltas[number % 4]), range(40)))
    theirs = {id(parameter) for parameter in resident.module.parameters()}
    seen: set[int] = set()
    for number, model in enumerate(models):
        task = model.model
        for name in head_names(task, resident.binding.own):
            tensor = task.get_parameter(name)
            assert torch.equal(tensor, deltas[number % 4].head[name])
            assert tensor.data_ptr() not in seen
            seen.add(tensor.data_ptr())
        assert theirs >= {id(p) for p in task.parameters()} - {
            id(task.get_parameter(name)) for name in head_names(task, resident.binding.own)
        }
