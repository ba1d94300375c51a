"""Where a row could get another's answer, or the base's, without a sign: refused at once, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.errors import MismatchError, ResidentError
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.mixing.conftest import model, untouched
from tests.mixing.test_mixer import LAYER, VECTORS, check, rows_of, with_tensors
from tests.tasks import random_task

INNER = f"{LAYER}.intermediate.dense"


class Inner(nn.Module):
    """The inner half of a block, which uses its linear layer in the way it is told."""

    def __init__(self, dense: nn.Linear, use: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.dense = dense
        self.use = use

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self.use(self.dense, states))


def with_inner(base: Base, mask: Mask | None, use: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> Resident:
    backbone: Any = load_backbone(base)
    backbone.encoder.layer[0].intermediate = Inner(backbone.encoder.layer[0].intermediate.dense, use)
    return Resident(backbone.eval(), base, mask)


READERS: dict[str, Callable[[nn.Linear, torch.Tensor], torch.Tensor]] = {
    "linear": lambda dense, states: functional.linear(states, dense.weight, dense.bias),
    "product": lambda dense, states: states @ dense.weight.T + dense.bias,
    "data": lambda dense, states: functional.linear(states, dense.weight.data, dense.bias.data),
    "operator": lambda dense, states: torch.ops.aten.linear(states, dense.weight, dense.bias),
    "both": lambda dense, states: dense(states) + functional.linear(states, dense.weight),
    "stacked": lambda dense, states: functional.linear(states, torch.cat([dense.weight, dense.weight]))[..., :64],
    "never": lambda dense, states: states.repeat(1, 1, 2),
    "turned": lambda dense, states: dense(states.transpose(0, 1)).transpose(0, 1),
    "flat": lambda dense, states: dense(states.flatten(0, 1)).view(*states.shape[:2], -1),
    "cut": lambda dense, states: dense(states[:, 0]).unsqueeze(1) + dense(states[:1]),
    "sums of rows": lambda dense, states: dense(states.cumsum(0)),
    "first row": lambda dense, states: dense(states[:1].expand_as(states)),
    "named": lambda dense, states: dense(input=states),
}


@pytest.mark.parametrize("use", READERS)
def test_a_layer_that_is_not_just_called_with_rows_is_refused(base: Base, mask: Mask, use: str) -> None:
    odd = with_inner(base, mask, READERS[use])
    with pytest.raises(MismatchError, match=f"{INNER}.*swapped in"):
        Mixer(odd, load_tokenizer(base)).admit(model(odd))


def test_what_only_asks_for_a_dtype_or_a_shape_reads_nothing(base: Base, mask: Mask) -> None:
    asks = with_inner(base, mask, lambda dense, states: dense(states.to(dense.weight.dtype))[..., : len(dense.weight)])
    check(asks, made := Mixer(asks, load_tokenizer(base)), rows_of(made, [model(asks, 0), model(asks, 1)]))


def test_other_tasks_can_be_mixed_beside_a_layer_that_cannot(base: Base) -> None:
    odd = with_inner(base, None, READERS["linear"])
    made, plain = Mixer(odd, load_tokenizer(base)), random_task(base, None, "embeddings")
    tasks = [
        TaskModel(odd, load_tokenizer(base), with_tensors(base, plain, seed, VECTORS[0], f"{LAYER}.output.dense.bias"))
        for seed in range(2)
    ]
    check(odd, made, rows_of(made, tasks))


def test_a_layer_that_takes_another_way_later_is_found_out(base: Base, mask: Mask) -> None:
    """Its task's values would be in no answer."""
    late = with_inner(base, mask, lambda dense, states: dense(states))
    made = Mixer(late, load_tokenizer(base))
    rows = rows_of(made, [model(late, 0), model(late, 1)])
    check(late, made, rows)
    late.module.get_submodule(INNER.rpartition(".")[0]).use = READERS["linear"]
    with pytest.raises(MismatchError, match="1 layers that a task changes took no part"):
        made.run(rows)
    assert untouched(late)


def test_a_layer_with_a_forward_of_its_own_keeps_it(base: Base, mask: Mask) -> None:
    """As libraries that move layers between devices give it one."""
    resident = Resident(load_backbone(base), base, mask)
    dense = resident.module.get_submodule(INNER)
    own = dense.forward
    dense.forward = own
    made = Mixer(resident, load_tokenizer(base))
    with pytest.raises(MismatchError, match=INNER):
        made.admit(model(resident))
    plain = TaskModel(resident, load_tokenizer(base), random_task(base, None, "embeddings"))
    made.run(rows_of(made, [plain]))
    assert vars(dense)["forward"] is own


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_layer_that_shares_its_weight_is_refused(base: Base, mask: Mask, parameter: str) -> None:
    backbone: Any = load_backbone(base)
    backbone.twin = nn.Linear(32, 64)
    backbone.twin.weight = backbone.get_submodule(INNER).weight
    tied = Resident(backbone, base, mask)
    delta = random_task(base, mask if parameter == "weight" else None, "embeddings")
    if parameter == "bias":
        delta = with_tensors(base, delta, 1, f"{INNER}.bias")
    with pytest.raises(MismatchError, match=f"{INNER}.{parameter}.*swapped in"):
        Mixer(tied, load_tokenizer(base)).admit(TaskModel(tied, load_tokenizer(base), delta))


@pytest.mark.parametrize("norm", [nn.RMSNorm(32), None])
def test_a_norm_that_takes_no_weight_for_each_row_is_refused(base: Base, norm: nn.Module | None) -> None:
    backbone: Any = load_backbone(base)
    old = backbone.embeddings.LayerNorm
    own = FlatRMSNorm() if norm is None else norm
    own.weight = old.weight
    backbone.embeddings.LayerNorm = own
    resident = Resident(backbone, base, None)
    delta = with_tensors(base, random_task(base, None, "embeddings"), 1, "embeddings.LayerNorm.weight")
    with pytest.raises(MismatchError, match=r"changes embeddings\.LayerNorm"):
        Mixer(resident, load_tokenizer(base)).admit(TaskModel(resident, load_tokenizer(base), delta))


class FlatRMSNorm(nn.Module):
    """Takes the first row's weight whatever it is given."""

    weight: torch.Tensor

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * self.weight.reshape(-1)[: states.shape[-1]]


def test_a_task_admitted_while_another_is_in_place_is_right(base: Base, mask: Mask) -> None:
    """What is kept of the base is read before any task comes."""
    everywhere = Mask.build(base, density=0.3, scope="all", recipe="random")
    resident = Resident(load_backbone(base), base, everywhere)
    made, tasks = Mixer(resident, load_tokenizer(base)), [model(resident, seed) for seed in range(3)]
    resident.swap(tasks[2].prepared)
    plain = with_tensors(base, random_task(base, None, "embeddings"), 5, VECTORS[0])
    tasks.append(TaskModel(resident, load_tokenizer(base), plain))
    rows = rows_of(made, tasks)
    resident.restore()
    check(resident, made, rows)


def test_a_mixer_is_made_on_the_base_alone(resident: Resident) -> None:
    resident.swap(model(resident).prepared)
    with pytest.raises(ResidentError, match="restore the base first"):
        Mixer(resident, load_tokenizer(resident.base))


def test_a_task_of_another_resident_or_mixer_is_refused(
    base: Base, mask: Mask, resident: Resident, mixer: Mixer
) -> None:
    task = model(resident)
    [row] = rows_of(mixer, [task], ["w1"])
    with pytest.raises(MismatchError, match="admitted by another mixer"):
        Mixer(resident, load_tokenizer(base)).run([row])
    with pytest.raises(MismatchError, match="made for another resident"):
        mixer.admit(model(Resident(load_backbone(base), base, mask)))
