"""The base, three residents of it, texts, and tasks of made values."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.encoding import Encoded
from deltahub.heads import load_tokenizer
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.mixing.sites import Site
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.task_model import TaskModel

KINDS = ("masked", "biases", "low rank")
LABELS = ("yes", "no", "perhaps")
RANK = 8


class Made:
    """What all sizes have in common.

    Args:
        folder: the base, an encoder.
        device: of everything.
        density: of the mask.

    Attributes:
        resident: stays at the base's values for ``mixer``; holds a task's only while answers are compared.
        dedicated: holds one task's values all the time.
        swapped: whose values are swapped for each row.
    """

    def __init__(self, folder: Path, device: torch.device, density: float = 0.005) -> None:
        self.device = device
        self.base = Base.open(folder, cache=Path(tempfile.gettempdir()) / "deltahub-bench")
        self.mask = Mask.build(self.base, density=density)
        self.tokenizer = load_tokenizer(self.base)
        self.resident, self.dedicated, self.swapped = (self._resident() for _ in range(3))
        self.mixer = Mixer(self.resident, self.tokenizer)

    def _resident(self) -> Resident:
        return Resident(load_backbone(self.base).to(self.device), self.base, self.mask)

    @cached_property
    def layers(self) -> Mapping[str, Site[nn.Linear]]:
        """The linear layers of the encoder, by their place in the backbone."""
        places = {module: place for place, module in self.resident.module.named_modules()}
        return {
            places[site.module]: site for site in self.mixer.sites.matrices if places[site.module].startswith("encoder")
        }

    @cached_property
    def biases(self) -> list[str]:
        """Base tensors: all biases of the encoder, norms and all."""
        return [
            vector.name for vector in self.mixer.sites.vectors
            if vector.parameter == "bias" and "encoder." in vector.name
        ]  # fmt: skip

    def delta(self, seed: int, kind: str) -> Delta:
        """One of KINDS, or ``head``: nothing else. The head of a seed is the same in all of them."""
        made = torch.Generator().manual_seed(seed)
        tensors = {}
        width = self.base.config["hidden_size"]
        for name, shape in (("weight", (len(LABELS), width)), ("bias", (len(LABELS),))):
            tensors[f"head.classifier.{name}"] = RawTensor.of_torch(0.2 * torch.randn(shape, generator=made))
        if kind == "masked":
            tensors["values"] = _near(self._base_values, made)
        elif kind == "biases":
            tensors |= {f"dense.{name}": _near(self.base.read(name), made) for name in self.biases}
        elif kind == "low rank":
            for site in self.layers.values():
                outputs, inputs = site.tensor.shape
                for part, size in (("up", (outputs, RANK)), ("down", (RANK, inputs))):
                    factor = 0.04 * torch.randn(size, generator=made)
                    tensors[f"adapter.{site.name}.{part}"] = RawTensor.of_torch(factor)
        else:
            assert kind == "head"
        return self._delta(f"task{seed}", tensors)

    @cached_property
    def _base_values(self) -> RawTensor:
        return self.base.gather(self.mask.indices)

    def matrices_alone(self, delta: Delta) -> Delta:
        """``delta`` with its values in the encoder's linear layers, and the base's everywhere else."""
        assert delta.values is not None
        values = self._base_values.torch().clone()
        for site in self.layers.values():
            values[site.part] = delta.values[site.part]
        return self._delta(delta.task, {**delta.tensors, "values": RawTensor.of_torch(values)})

    def _delta(self, task: str, tensors: Mapping[str, RawTensor]) -> Delta:
        manifest = Manifest(
            task, "text-classification", self.base.ref, self.mask.ref if "values" in tensors else None, labels=LABELS,
            architecture="LinearHead", backbone_prefix="backbone.", inputs={"pooling": "mean"},
        )  # fmt: skip
        return Delta(manifest, tensors)

    def models(self, resident: Resident, deltas: Sequence[Delta]) -> list[TaskModel]:
        return [TaskModel(resident, self.tokenizer, delta) for delta in deltas]

    def encoded(self, model: TaskModel, rows: int, tokens: int) -> list[Encoded]:
        """Texts of so many tokens each, with those that begin and end it; every row has its own."""
        choose = random.Random(tokens)
        found = model.prepare([" ".join(choose.choices(self._words, k=tokens - 2)) for _ in range(rows)])
        assert {len(item.tokens["input_ids"]) for item in found} == {tokens}
        return found

    @cached_property
    def _words(self) -> list[str]:
        """Words that are one token each, ascending."""
        return sorted(
            word for word in self.tokenizer.get_vocab() if word.isascii() and word.isalnum() and word.islower()
        )


def _near(raw: RawTensor, made: torch.Generator) -> RawTensor:
    """In place, so that no other memory is left behind."""
    return RawTensor.of_torch(torch.randn(raw.shape, generator=made).mul_(1e-2).add_(raw.torch()))
