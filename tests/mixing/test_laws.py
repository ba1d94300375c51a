"""Laws of mixed passes for any rows in any order: whose answer a row gets does not depend on the others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahub.backbone import load_backbone
from deltahub.encoding import Encoded
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixable, Mixed, Mixer
from deltahub.mixing.products import PlainProducts
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.mixing.test_mixer import KINDS, MATRICES, NORMS, VECTORS, _encoded, merged, numbers, with_tensors
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

TEXTS = ["w1", "w1 w2", "w3 w2 w1", "w5 w6 w7 w8 w9", "w4 w4 w4 w4 w4 w4 w4", "w9 w8 w7 w6 w5 w4 w3 w2 w1 w0 w1"]
rows = st.lists(st.tuples(st.integers(0, 9), st.integers(0, len(TEXTS) - 1)), min_size=1, max_size=12)


@dataclass(frozen=True)
class World:
    """Ten tasks that differ in all that tasks can differ in, and what each answers when it is swapped in."""

    mixers: list[Mixer]
    tasks: list[list[Mixable]]
    encoded: list[list[Encoded]]
    swapped: list[list[torch.Tensor]]

    def run(self, chosen: list[tuple[int, int]], mixer: int = 0) -> list[Mixed]:
        return self.mixers[mixer].run([(self.tasks[mixer][task], self.encoded[task][text]) for task, text in chosen])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = write_text_base(tmp_path_factory.mktemp("laws"))
    mask = Mask.build(base, density=0.2, scope="all")
    resident, tokenizer = Resident(load_backbone(base), base, mask), load_tokenizer(base)
    deltas = [random_task(base, mask, kind, task=kind, seed=at) for at, kind in enumerate(KINDS)]
    deltas.append(with_tensors(base, deltas[4], 1, *VECTORS))
    deltas.append(with_tensors(base, deltas[0], 2, *NORMS))
    deltas.append(with_tensors(base, with_tensors(base, deltas[1], 3, *MATRICES, group="adapter"), 3, VECTORS[0]))
    plain = random_task(base, None, "embeddings", task="plain")
    deltas += [plain, with_tensors(base, plain, 4, *VECTORS, *NORMS)]
    models = [TaskModel(resident, tokenizer, delta) for delta in deltas]
    encoded = [[_encoded(model, text) for text in TEXTS] for model in models]
    swapped = [[merged(resident, model, text) for text in texts] for model, texts in zip(models, encoded, strict=True)]
    mixers = [Mixer(resident, tokenizer), Mixer(resident, tokenizer, PlainProducts())]
    return World(mixers, [[mixer.admit(model, 7) for model in models] for mixer in mixers], encoded, swapped)


@given(rows, st.integers(0, 1))
@settings(max_examples=40)
def test_every_row_has_the_answer_and_the_stamp_of_its_own_task(
    world: World, chosen: list[tuple[int, int]], mixer: int
) -> None:
    found = world.run(chosen, mixer)
    assert [mixed.stamp for mixed in found] == [world.tasks[mixer][task].stamp for task, _ in chosen]
    for (task, text), mixed in zip(chosen, found, strict=True):
        torch.testing.assert_close(numbers(mixed.answer), world.swapped[task][text], rtol=1e-5, atol=1e-5)


@given(rows.flatmap(lambda chosen: st.tuples(st.just(chosen), st.permutations(range(len(chosen))))))
@settings(max_examples=20)
def test_answers_move_with_their_rows(world: World, both: tuple[list[tuple[int, int]], list[int]]) -> None:
    chosen, order = both
    found, moved = world.run(chosen), world.run([chosen[at] for at in order])
    for at, mixed in zip(order, moved, strict=True):
        assert mixed.stamp == found[at].stamp
        torch.testing.assert_close(numbers(mixed.answer), numbers(found[at].answer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", range(10))
def test_one_task_alone_is_answered_as_by_a_swap(world: World, task: int) -> None:
    for mixed, alone in zip(world.run([(task, text) for text in range(len(TEXTS))]), world.swapped[task], strict=True):
        torch.testing.assert_close(numbers(mixed.answer), alone, rtol=1e-5, atol=1e-5)


def test_the_tasks_differ(world: World) -> None:
    """Else the laws would hold for any answers at all."""
    answers = [torch.cat(found) for found in world.swapped]
    for at, one in enumerate(answers):
        for other in answers[:at]:
            assert one.shape != other.shape or (one - other).abs().max() > 1e-3


def test_one_model_under_two_versions_keeps_both_stamps(world: World) -> None:
    [mixer, _] = world.mixers
    first, second = (mixer.admit(world.tasks[0][0].model, version) for version in (1, 2))
    order = [first, second, first, second]
    found = mixer.run([(task, world.encoded[0][text]) for text, task in enumerate(order)])
    assert [mixed.stamp for mixed in found] == [task.stamp for task in order]


def test_no_rows_have_no_answers(world: World) -> None:
    assert world.run([]) == []
