"""PEFT's mixed LoRA and a plain block-diagonal product, on the backbone alone, with the tasks' own numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deltahub.backbone import load_backbone, quiet
from deltahub.delta import Delta
from deltahub.mixing.sites import Site
from mixed.made import RANK, Made

Backbone = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""From inputs, (rows, t) each, to the last hidden states, (rows, t, width)."""


def bare(module: nn.Module) -> Backbone:
    def run(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        states: torch.Tensor = module(**inputs).last_hidden_state
        return states

    return run


def lora(made: Made, deltas: Sequence[Delta]) -> Backbone:
    """PEFT with an adapter for each of ``deltas``, whose factors it has, and a batch of a row for each."""
    from peft import LoraConfig, get_peft_model

    def config() -> LoraConfig:
        return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(made.layers))

    names = ["default", *(f"task{number}" for number in range(1, len(deltas)))]
    with quiet():
        model = get_peft_model(load_backbone(made.base).to(made.device), config())
        for name in names[1:]:
            model.add_adapter(name, config())
    with torch.no_grad():
        for place, site in made.layers.items():
            layer: Any = model.get_base_model().get_submodule(place)
            for name, delta in zip(names, deltas, strict=True):
                assert layer.scaling[name] == 1
                layer.lora_A[name].weight.copy_(delta.adapter[f"{site.name}.down"])
                layer.lora_B[name].weight.copy_(delta.adapter[f"{site.name}.up"])
    model.eval()

    def run(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        states: torch.Tensor = model(**inputs, adapter_names=names).last_hidden_state
        return states

    return run


class BlockDiagonal(nn.Module):
    """The plain way for one linear layer: a sparse product for the whole batch, for which its input is turned.

    The pattern is the shared index, repeated down the diagonal; pattern and values are made once.

    Args:
        linear: the base's layer.
        site: the masked positions.
        values: (k,) of each row's task.
    """

    def __init__(self, linear: nn.Linear, site: Site[nn.Linear], values: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.linear = linear
        self.out, width = linear.weight.shape
        local, count = site.local, len(site.local)
        base = linear.weight.detach().view(-1)[local]
        ends = torch.bincount(local // width, minlength=self.out).cumsum(0)
        crow = torch.cat([ends.new_zeros(1), *(ends + row * count for row in range(len(values)))])
        columns = torch.cat([local % width + row * width for row in range(len(values))])
        changes = torch.cat([own[site.part].to(base) - base for own in values])
        shape = (len(values) * self.out, len(values) * width)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            self.blocks = torch.sparse_csr_tensor(crow.int(), columns.int(), changes, shape, check_invariants=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = states.shape
        change = (self.blocks @ states.transpose(1, 2).reshape(rows * width, tokens)).view(rows, self.out, tokens)
        found: torch.Tensor = self.linear(states)
        return found.add_(change.transpose(1, 2))


def block_diagonal(made: Made, deltas: Sequence[Delta]) -> Backbone:
    """A row for each of ``deltas``; only their values in the encoder's linear layers are in it."""
    module: nn.Module = load_backbone(made.base).to(made.device)
    values = [delta.values for delta in deltas if delta.values is not None]
    for place, site in made.layers.items():
        parent, _, name = place.rpartition(".")
        linear = module.get_submodule(place)
        assert isinstance(linear, nn.Linear)
        setattr(module.get_submodule(parent), name, BlockDiagonal(linear, site, values))
    return bare(module)
