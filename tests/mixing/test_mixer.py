"""Rows of many tasks in one pass: each answer is that of its own task, as if it had been swapped in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltahub.answers import Answer
from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.encoding import Encoded
from deltahub.errors import MismatchError, ResidentError, UsageError
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixable, Mixer
from deltahub.mixing.products import PlainProducts
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.models import bits, same_bits
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

KINDS = ["text-classification", "multi-label-classification", "regression", "token-classification", "embeddings"]
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w1", "w2 w2"]
LAYER = "encoder.layer.0"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("mixing"))


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    found = Mask.build(base, density=0.1)
    names = {tensor.name.rpartition(".")[0] for tensor, _ in base.space.split(found.indices)}
    assert f"{LAYER}.attention.self.query" in names
    return found


@pytest.fixture(scope="module")
def resident(base: Base, mask: Mask) -> Resident:
    return Resident(load_backbone(base), base, mask)


@pytest.fixture(params=["compiled", "torch"])
def mixer(resident: Resident, request: pytest.FixtureRequest) -> Mixer:
    resident.restore()
    tokenizer = load_tokenizer(resident.base)
    made = Mixer(resident, tokenizer) if request.param == "compiled" else Mixer(resident, tokenizer, PlainProducts())
    assert made.products.name == request.param
    return made


def with_tensors(base: Base, delta: Delta, seed: int, *names: str, group: str = "dense") -> Delta:
    """``delta`` with random tensors in place of the base's ``names``, or random factors of them."""
    made = torch.Generator().manual_seed(seed)
    tensors = dict(delta.tensors)
    for name in names:
        shape = base.space.by_name[name].shape
        if group == "dense":
            tensors[f"dense.{name}"] = RawTensor.of_torch(torch.randn(shape, generator=made) * 0.3)
        else:
            for part, size in (("up", (shape[0], 2)), ("down", (2, shape[1]))):
                tensors[f"adapter.{name}.{part}"] = RawTensor.of_torch(torch.randn(size, generator=made) * 0.3)
    return Delta(delta.manifest, tensors)


def numbers(answer: Answer) -> torch.Tensor:
    def walk(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [number for item in value.values() for number in walk(item)]
        if isinstance(value, list | tuple):
            return [number for item in value for number in walk(item)]
        return [float(value)] if isinstance(value, float) else []

    return torch.tensor(walk(answer.as_dict()))


def merged(resident: Resident, model: TaskModel, encoded: Encoded) -> torch.Tensor:
    resident.swap(model.prepared)
    [answer] = model.run([encoded])
    resident.restore()
    return numbers(answer)


def rows_of(mixer: Mixer, models: list[TaskModel], texts: list[str] = TEXTS) -> list[tuple[Mixable, Encoded]]:
    """A text for each model, in turn until all texts are asked."""
    admitted = [mixer.admit(model) for model in models]
    return [
        (admitted[at % len(models)], _encoded(models[at % len(models)], texts[at % len(texts)]))
        for at in range(max(len(models), len(texts)))
    ]


def _encoded(model: TaskModel, text: str) -> Encoded:
    words = model.delta.manifest.kind == "token-classification"
    [encoded] = model.prepare([text.split() if words else text])
    return encoded


def check(resident: Resident, mixer: Mixer, rows: list[tuple[Mixable, Encoded]]) -> None:
    for (task, encoded), mixed in zip(rows, mixer.run(rows), strict=True):
        assert mixed.stamp == task.stamp
        alone = merged(resident, task.model, encoded)
        torch.testing.assert_close(numbers(mixed.answer), alone, rtol=1e-5, atol=1e-5)


def test_every_row_is_answered_by_its_own_task(resident: Resident, mixer: Mixer, base: Base, mask: Mask) -> None:
    """All kinds at once, rows of unlike lengths, several rows of one task, and the base itself."""
    models = [
        TaskModel(resident, load_tokenizer(base), random_task(base, mask, kind, task=f"t{at}", seed=at))
        for at, kind in enumerate([*KINDS, *KINDS])
    ]
    models.append(TaskModel(resident, load_tokenizer(base), random_task(base, None, "embeddings", task="plain")))
    rows = rows_of(mixer, models)
    rows += [(rows[0][0], _encoded(models[0], "w9 w8")), (rows[3][0], _encoded(models[3], "w1 w9"))]
    check(resident, mixer, rows)
    same = [(rows[at][0], _encoded(models[at], "w1 w2")) for at in (0, 5)]
    one, other = (numbers(mixed.answer) for mixed in mixer.run(same))
    assert (one - other).abs().max() > 1e-3, "the tasks do not differ: nothing was tested"


Change = Callable[[Base, Delta, int], Delta]
VECTORS = (f"{LAYER}.attention.self.query.bias", f"{LAYER}.output.dense.bias", f"{LAYER}.output.LayerNorm.bias")
NORMS = (f"{LAYER}.output.LayerNorm.weight", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias")
MATRICES = (f"{LAYER}.attention.self.query.weight", f"{LAYER}.intermediate.dense.weight")
CHANGES: dict[str, Change] = {
    "biases": lambda base, delta, seed: with_tensors(base, delta, seed, *VECTORS),
    "norms": lambda base, delta, seed: with_tensors(base, delta, seed, *NORMS),
    "factors": lambda base, delta, seed: with_tensors(base, delta, seed, *MATRICES, group="adapter"),
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_change_is_of_its_row_alone(
    resident: Resident, mixer: Mixer, base: Base, mask: Mask, change: str, masked: bool
) -> None:
    plain = [random_task(base, mask if masked else None, "text-classification", task=f"t{n}", seed=n) for n in range(3)]
    deltas = [CHANGES[change](base, plain[0], 1), CHANGES[change](base, plain[1], 2), plain[2]]
    models = [TaskModel(resident, load_tokenizer(base), delta) for delta in deltas]
    check(resident, mixer, rows_of(mixer, models))


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", MATRICES[0]])
def test_a_task_that_changes_whole_tables_is_refused(
    resident: Resident, mixer: Mixer, base: Base, mask: Mask, name: str
) -> None:
    delta = with_tensors(base, random_task(base, mask, "text-classification"), 0, name)
    with pytest.raises(MismatchError, match=rf"task changes {name}.*swapped in"):
        mixer.admit(TaskModel(resident, load_tokenizer(base), delta))


@pytest.mark.parametrize("products", [None, PlainProducts()])
def test_a_mask_over_everything_can_be_mixed(base: Base, products: PlainProducts | None) -> None:
    """Words, positions and segments are looked up by each row in its own table."""
    everywhere = Mask.build(base, density=0.3, scope="all")
    names = {tensor.name for tensor, _ in base.space.split(everywhere.indices)}
    assert {f"embeddings.{one}_embeddings.weight" for one in ("word", "position", "token_type")} <= names
    own = Resident(load_backbone(base), base, everywhere)
    models = [
        TaskModel(own, load_tokenizer(base), random_task(base, everywhere, kind, task=kind, seed=seed))
        for seed, kind in enumerate(KINDS)
    ]
    mixer = Mixer(own, load_tokenizer(base), products)
    check(own, mixer, rows_of(mixer, models))


def test_a_pass_on_another_tasks_values_is_refused(resident: Resident, mixer: Mixer, base: Base, mask: Mask) -> None:
    model = TaskModel(resident, load_tokenizer(base), random_task(base, mask, "text-classification"))
    rows = rows_of(mixer, [model])
    resident.swap(model.prepared)
    with pytest.raises(ResidentError, match="restore the base first"):
        mixer.run(rows)


def test_nothing_stays_in_the_module_whatever_happens(
    resident: Resident, mixer: Mixer, base: Base, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TaskModel(resident, load_tokenizer(base), random_task(base, mask, "text-classification"))
    before, alone = bits(resident.module), merged(resident, model, _encoded(model, "w1 w2"))
    rows = rows_of(mixer, [model])
    mixer.run(rows)
    with monkeypatch.context() as patch:
        patch.setattr("deltahub.mixing.heads.answers", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mixer.run(rows)
    last = resident.module.encoder.layer[-1].output.dense
    handle = last.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixer.run(rows)
    handle.remove()
    assert not any(part._forward_hooks or "forward" in vars(part) for part in resident.module.modules())
    assert same_bits(before, bits(resident.module))
    assert torch.equal(alone, merged(resident, model, _encoded(model, "w1 w2")))


def test_what_is_no_row_or_no_task_is_refused_in_one_line(
    resident: Resident, mixer: Mixer, base: Base, mask: Mask
) -> None:
    delta = random_task(base, mask, "text-classification")
    model = TaskModel(resident, load_tokenizer(base), delta)
    questions = model.prepare(["w1"])
    with pytest.raises(UsageError, match=r"expected a TaskModel, found Delta"):
        mixer.admit(delta)  # type: ignore[arg-type]
    for wrong in ((model, questions[0]), (mixer.admit(model), questions), (mixer.admit(model), "w1"), questions[0]):
        with pytest.raises(UsageError, match="row 1 of a mixed pass: expected what admit gave"):
            mixer.run([wrong])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="put it into a list"):
        model.prepare("w1 w2")
