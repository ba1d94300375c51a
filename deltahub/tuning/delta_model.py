"""Three lines for a loop of one's own: attach to a model, train what `DeltaModel` calls its parameters, export.

delta_model = attach(model, base, mask, method="pafi")
...  # any torch optimizer over delta_model.parameters(), or transformers.Trainer(model=delta_model, ...)
delta = delta_model.export("task.delta")
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltahub.checkpoint import Base
from deltahub.convert.extract import extract
from deltahub.delta import Delta
from deltahub.errors import MismatchError, UsageError
from deltahub.manifest import Plain
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.skeletons import backbone_prefix
from deltahub.space import role
from deltahub.tuning.choice import Adapters, choose, mask_for
from deltahub.tuning.hiwi import HiWi
from deltahub.tuning.methods import methods_named
from deltahub.tuning.parts import MaskedValues, Part, WholeTensors
from deltahub.tuning.tensors import Tensors


def attach(
    model: nn.Module,
    base: Base,
    mask: Mask | None = None,
    method: str = "pafi",
    *,
    adapters: Adapters | None = None,
    frozen: Collection[str] = (),
) -> DeltaModel:
    """Makes ``model`` train what ``method`` may change, and its head.

    Args:
        model: a freshly loaded transformers model on ``base``, already on its device; compared with it bit by bit.
        mask: the mask of the tasks; None builds the method's own at 0.5 %.
        method: names of `methods.METHODS`, several joined by ``+``.
        adapters: settings of ``hiwi`` and ``hiwi-weight``.
        frozen: names of head tensors that are not trained.

    Raises:
        UsageError: an unknown method, or one that has no use for ``mask``.
        MismatchError: model, base and mask do not belong together, or the model has nothing that the method trains.
    """
    return DeltaModel(model, Resident(model, base, mask_for(method, base, mask)), method, adapters, frozen)


class DeltaModel(nn.Module):
    """A task model whose ``parameters()`` and ``state_dict()`` are only what is trained: fp32 masters.

    Call it instead of the model: each forward pass first writes the masters into the model. Whatever of the wrapped
    model is not found here (``config``, ``gradient_checkpointing_enable``, ...) is looked up there.

    Attributes:
        model: the wrapped task model; everything else in it stays as in the base, to the bit.
        resident: how its backbone is bound to the base.
        method: name of the method.
        notes: what could not be done as asked, a line each.
    """

    def __init__(
        self,
        model: nn.Module,
        resident: Resident,
        method: str,
        adapters: Adapters | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not registered: its parameters are not what is trained
        self.__dict__["resident"] = resident
        self.method = method
        self.adapters = adapters or Adapters()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        plan = choose(resident, method, self.adapters)
        whole, adapted = plan.whole, plan.adapted
        self.notes = plan.notes
        own = set(whole) | set(adapted)
        self.values: Part | None = MaskedValues(resident, skip=own) if resident.mask is not None else None
        self.dense = WholeTensors(whole) if whole else None
        self.hiwi = self._hiwi(adapted) if adapted else None
        head = _head(model, resident)
        _check_layers(model, resident, head)
        if unknown := sorted(set(frozen) - set(head)):
            raise UsageError(f"frozen {', '.join(unknown[:3])}", expected=f"names of the head: {', '.join(head)}")
        self.head = WholeTensors({name: parameter for name, parameter in head.items() if name not in frozen})
        self._parts = [part for part in (self.values, self.dense, self.hiwi, self.head) if part is not None]
        self._attached = True
        self.__dict__["forward"] = self._forward_of(model)
        self.train(model.training)

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        """As the wrapped model's; named here because transformers looks at the class for the names of labels."""
        raise AssertionError("each instance has its own")

    def _forward_of(self, model: nn.Module) -> Callable[..., Any]:
        """A forward pass with the signature of ``model``'s, by which transformers chooses the columns of a batch."""

        @functools.wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.write()
            return model(*args, **kwargs)

        return forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # not a part of any compiled graph
    def write(self) -> None:
        """Puts the masters into the model, rounded to its dtype; every forward pass does so first."""
        for part in self._parts if self._attached else ():
            part.write()

    def detach(self) -> None:
        """Writes the masters a last time and removes every hook: ``model`` is then an ordinary fine-tuned model."""
        self.write()
        for part in self._parts:
            part.detach()
        self._attached = False

    def groups(
        self, *, lr: float | None = None, head_lr: float = 5e-3, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer: small weights want a large rate, the head an ordinary one.

        Args:
            lr: of everything but the head; None takes what suits each part of the method, see `methods.METHODS`.
            weight_decay: decoupled, on everything but the head.
        """
        own = {self.values: "mask", self.dense: "whole", self.hiwi: "hiwi"}
        groups = [
            {"params": list(part.parameters()), "lr": self._rate(what) if lr is None else lr,
             "weight_decay": weight_decay}
            for part, what in own.items() if part is not None
        ]  # fmt: skip
        groups.append({"params": list(self.head.parameters()), "lr": head_lr, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def _rate(self, what: str) -> float:
        """The learning rate of the first method that trains a mask, whole tensors or an adapter; else the largest."""
        methods = methods_named(self.method)
        return next((method.lr for method in methods if getattr(method, what)), max(method.lr for method in methods))

    @property
    def trained_parameters(self) -> int:
        """How many numbers an optimizer moves; an adapter may train more than is stored."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def reduce_gradients(self, group: Any = None) -> None:
        """Averages the masters' gradients over the processes of a data-parallel run, between backward and step.

        What travels is one fp32 vector of `trained_parameters` numbers, not the N gradients of the backbone.
        """
        import torch.distributed as dist

        masters = list(self.parameters())
        flat = torch.cat(
            [(torch.zeros_like(m) if m.grad is None else m.grad).reshape(-1).to(masters[0].device) for m in masters]
        )
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for master, part in zip(masters, torch.split(flat, [m.numel() for m in masters]), strict=True):
            master.grad = part.view_as(master).to(master.device, copy=True)

    def export(
        self,
        path: str | Path | None = None,
        *,
        task: str | None = None,
        kind: str | None = None,
        labels: Sequence[str] | None = None,
        metrics: Mapping[str, float] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        settings: Mapping[str, Plain] | None = None,
        licence: str | None = None,
        created: str | None = None,
    ) -> Delta:
        """Everything that the training changed; refused if that is more than the method may change.

        Args:
            path: file to write, ending in ``.delta``; None writes none.
            task: its name; the file's by default.
            kind, labels: taken from the model's config by default.
            inputs: what turns text into the model's input, such as ``{"max_length": 128}``.
            settings: hyper-parameters to note beside the method's name.

        Raises:
            OutsideMaskError: something else in the model was changed during the training.
            UsageError: neither ``path`` nor ``task``.
        """
        if task is None:
            if path is None:
                raise UsageError("export needs a name for the task", hint="give task= or a path")
            task = Path(path).stem.lower()
        self.write()
        if self.hiwi is not None:
            self.hiwi.settle()
        how: dict[str, Plain] = {"name": self.method, "trained_parameters": self.trained_parameters}
        if self.hiwi is not None:
            how |= {"bottleneck": self.adapters.bottleneck, "activation": self.adapters.activation}
        if kept := sorted(set(_head(self.model, self.resident)) - set(self.head.names)):
            how["head_frozen"] = list(kept)
        pooling = getattr(self.model, "pooling", None)
        delta = extract(
            self.resident.base, self.model, self.resident.mask, task=task, dense=self._dense_names(),
            adapter=self._factors(), kind=kind, labels=labels, method=how | dict(settings or {}), metrics=metrics,
            inputs=({"pooling": pooling} if pooling else {}) | dict(inputs or {}), licence=licence, created=created,
        )  # fmt: skip
        if delta.manifest.kind == "embeddings":  # a pooler that the base lacks has no part in them
            delta = Delta(delta.manifest, {n: raw for n, raw in delta.tensors.items() if not n.startswith("head.")})
        if path is not None:
            delta.save(path)
        return delta

    def train(self, mode: bool = True) -> DeltaModel:
        super().train(mode)
        self.model.train(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DeltaModel:
        """Where ``.to()`` and its like come through: masters and model must stay where and what they are."""
        probe = next(iter(self.model.parameters())).detach()
        if (moved := fn(probe)).device != probe.device or moved.dtype != probe.dtype:
            raise UsageError(
                "an attached model cannot change its device or dtype", hint="move the model, then attach to it"
            )
        return self

    def __deepcopy__(self, memo: Any) -> DeltaModel:
        raise UsageError("an attached model cannot be copied", hint="keep its state_dict() instead")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__:
                raise
            return getattr(self.__dict__["model"], name)

    def _hiwi(self, adapted: Tensors) -> HiWi:
        options = self.adapters
        return HiWi(
            adapted, bottleneck=options.bottleneck, activation=options.activation,
            generator=torch.Generator().manual_seed(options.seed),
        )  # fmt: skip

    def _dense_names(self) -> tuple[str, ...]:
        adapted = () if self.hiwi is None else (n for n, t in self.hiwi.targets() if t.ndim == 1)
        return (*(self.dense.names if self.dense is not None else ()), *adapted)

    def _factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        if self.hiwi is None:
            return {}
        matrices = [name for name, target in self.hiwi.targets() if target.ndim == 2]
        factors = {name: self.hiwi.factors(name) for name in matrices}
        return {name: (up.cpu(), down.cpu()) for name, (up, down) in factors.items()}


def _head(model: nn.Module, resident: Resident) -> Tensors:
    """Parameters of ``model`` that the base lacks."""
    placed = {id(place.tensor) for place in resident.binding.placements}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in placed}


def _check_layers(model: nn.Module, resident: Resident, head: Tensors) -> None:
    """A config of more layers than the base has gives the rest random values: they are no head."""
    prefix = backbone_prefix(model)
    inside = [name for name in head if prefix and name.startswith(prefix)]
    random = [name for name in inside if role(name.removeprefix(prefix), head[name].shape) == "block"]
    if random:
        raise MismatchError(
            f"{resident.base.id} lacks {len(random)} tensors of the layers that its config names", got=random[0],
            hint="mend config.json, or give the whole checkpoint",
        )  # fmt: skip
