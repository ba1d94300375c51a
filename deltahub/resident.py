"""One base in memory whose masked values are swapped in place, and put back, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltahub.backbone import load_backbone
from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.dense import DenseSlots, Write
from deltahub.errors import MismatchError, PoisonedError, ResidentError
from deltahub.fit import check_fit
from deltahub.layout import check_values, flatten, segments
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, torch_dtype


@dataclass(frozen=True)
class Stamp:
    """Whose values the resident holds."""

    task: str
    version: int | None
    digest: str


class Resident:
    """A module bound to a base: `swap` puts a task's values into it, `restore` the base's.

    Every tensor of the base in ``module`` becomes a view of one flat buffer per dtype and device, in the order of the
    parameter space. Parameters keep their identity, so ties, hooks and optimizers go on working.

    Not safe for concurrent use: one thread swaps and runs the module.

    Args:
        module: a loaded model with the base's values, alone or inside a task model; its other parameters are its head.
        base: the checkpoint that it was loaded from; compared bit by bit.
        mask: positions that deltas replace; None for tasks of dense tensors only.

    Raises:
        MismatchError: module, base and mask do not belong together.
    """

    def __init__(self, module: torch.nn.Module, base: Base, mask: Mask | None) -> None:
        if mask is not None:
            mask.check_base(base)
        self.module = module
        self.base = base
        self.mask = mask
        self.binding = bind(module, base)
        check_values(self.binding, base)
        base.check_unchanged()
        self.flats = flatten(self.binding)
        self.segments = tuple(segments(self.binding, self.flats, base, mask)) if mask is not None else ()
        self._dtype = base.space.widest(mask.indices) if mask is not None else None
        self._dense = DenseSlots(self.binding, base)
        state = module.state_dict(keep_vars=True)
        self._own = {name: state[name] for name in self.binding.own}
        self._own_at_start: dict[str, torch.Tensor] = {}
        self._undo: list[Write] = []
        self._stamp: Stamp | None = None
        self._poison: str | None = None

    @staticmethod
    def load(base: Base, mask: Mask | None) -> Resident:
        """Loads the bare backbone and binds it tensor by tensor: memory peaks at one model and its largest tensor.

        Raises:
            CheckpointError, MismatchError: the base has no config, or transformers does not know its architecture.
        """
        return Resident(load_backbone(base), base, mask)

    @property
    def stamp(self) -> Stamp | None:
        """The task whose values are in place; None for the base itself.

        Raises:
            PoisonedError: a write failed half-way and could not be undone.
        """
        self._check_usable()
        return self._stamp

    def check(self, delta: Delta) -> None:
        """Whether `swap` would take ``delta``; nothing is changed.

        Raises:
            MismatchError: another base, another mask, or tensors that do not fit.
        """
        self._prepare(delta)

    def swap(self, delta: Delta, version: int | None = None) -> Stamp:
        """Puts ``delta`` in place of whatever is there: one indexed write of k values, and its few dense tensors.

        The head is written where the module has one of its shape; a bare backbone ignores it.

        Args:
            version: number in a hub, for the stamp.

        Raises:
            MismatchError: another base, another mask, or tensors that do not fit; nothing was changed.
            ResidentError: the write failed; the base's values are back in place.
            PoisonedError: ... and could not be put back.
        """
        self._check_usable()
        writes, undo = self._prepare(delta)
        values = delta.values
        self._stamp, self._poison = None, "a swap is under way"
        try:
            self._write_back()
            self._undo = undo
            if values is not None:
                self._write_values(values)
            else:
                self._write_base_values()
            for write in writes:
                write.run()
        except BaseException as error:
            self._recover(f"swapping in {delta.task}", error)
            raise
        self._stamp, self._poison = Stamp(delta.task, version, delta.digest), None
        return self._stamp

    def restore(self) -> None:
        """Puts the base's own values back, to the bit; the module's head as it was when bound.

        Raises:
            PoisonedError: the base could not be put back.
        """
        self._check_usable()
        self._stamp, self._poison = None, "a restore is under way"
        try:
            self._write_back()
            self._write_base_values()
        except BaseException as error:
            self._recover("restoring the base", error)
            raise
        self._poison = None

    def values(self) -> RawTensor:
        """The (k,) values now in place, in the widest dtype among the masked tensors."""
        self._check_usable()
        if self.mask is None:
            raise MismatchError("this resident has no mask", hint="give one to Resident")
        assert self._dtype is not None
        values = torch.empty(self.mask.k, dtype=torch_dtype(self._dtype))
        for segment in self.segments:
            values[segment.part] = segment.flat[segment.index].to(values)
        return RawTensor.of_torch(values)

    def _write_values(self, values: torch.Tensor) -> None:
        for segment in self.segments:
            part = values[segment.part].to(segment.flat.device, segment.flat.dtype)
            segment.flat.index_copy_(0, segment.index, part)

    def _write_base_values(self) -> None:
        for segment in self.segments:
            segment.flat.index_copy_(0, segment.index, segment.base)

    def _write_back(self) -> None:
        """Undoes the dense writes of the task in place."""
        for write in self._undo:
            write.run()
        self._undo = []

    def _recover(self, doing: str, error: BaseException) -> None:
        try:
            self._write_back()
            self._write_base_values()
        except BaseException as second:  # noqa: BLE001  (whatever it was, the state is unknown)
            self._poison = f"{doing} failed ({error}), and so did the way back ({second})"
            raise PoisonedError(self._poison, hint="load the base anew") from error
        self._poison = None
        if isinstance(error, Exception):
            raise ResidentError(f"{doing} failed ({error}); the base's values are back in place") from error

    def _check_usable(self) -> None:
        if self._poison:
            raise PoisonedError(f"the resident cannot answer: {self._poison}", hint="load the base anew")

    def _prepare(self, delta: Delta) -> tuple[list[Write], list[Write]]:
        """The dense and head writes of ``delta`` and those that undo them, after every check."""
        check_fit(delta, self.base, self.mask)
        with torch.no_grad():
            writes, undo = self._dense.writes(delta)
            for name, tensor in delta.head.items():
                own = self._own.get(name)
                if own is None:
                    continue
                if own.shape != tensor.shape or own.dtype != tensor.dtype:
                    raise MismatchError(
                        f"head {name} of {delta.task}", expected=f"{own.dtype} {tuple(own.shape)}",
                        got=f"{tensor.dtype} {tuple(tensor.shape)}", hint="bind a module with as many labels",
                    )  # fmt: skip
                writes.append(Write(own.data, tensor))
                at_start = self._own_at_start.setdefault(name, own.detach().clone())
                undo.append(Write(own.data, at_start))
        return writes, undo
