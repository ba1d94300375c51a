"""One base in memory whose masked values are swapped in place, and put back, to the bit."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from deltahub.backbone import load_backbone
from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.dense import DenseSlots, Write, scatter
from deltahub.errors import MismatchError, PoisonedError, ResidentError
from deltahub.fit import check_fit
from deltahub.layout import check_values, flatten, segments
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, torch_dtype
from deltahub.skeletons import Skeletons


@dataclass(frozen=True)
class Stamp:
    """Whose values the resident holds."""

    task: str
    version: int | None
    digest: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """A delta that one resident has checked and made ready, so that a swap does nothing but write.

    The delta's tensors must not be changed any more: some of them are written from where they are.

    Attributes:
        delta: the task.
        resident: whose `Resident.prepare` made this.
        parts: the values for each of its segments, in the segment's dtype; None without values.
        writes: of dense tensors, adapters and the head.
        undo: the writes that put back what ``writes`` replace.
    """

    delta: Delta
    resident: Resident = field(repr=False)
    parts: tuple[torch.Tensor, ...] | None = field(repr=False)
    writes: tuple[Write, ...] = field(repr=False)
    undo: tuple[Write, ...] = field(repr=False)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is kept for the next swap, whether in memory of its own or in the delta's."""
        return [*(self.parts or ()), *(write.source for write in self.writes)]


class Resident:
    """A module bound to a base: `swap` puts a task's values into it, `restore` the base's.

    Every tensor of the base in ``module`` becomes a view of one flat buffer per dtype and device, in the order of the
    parameter space. Parameters keep their identity, so ties, hooks and optimizers go on working.

    Not safe for concurrent use: one thread swaps and runs the module. Others may `prepare` and `check` meanwhile.

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
        self._own_undo: dict[str, Write] = {}
        self._own_lock = threading.Lock()
        self._undo: tuple[Write, ...] = ()
        self._stamp: Stamp | None = None
        self._poison: str | None = None
        self.skeletons = Skeletons(module, self.binding.own)

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
        self.prepare(delta)

    def prepare(self, delta: Delta) -> Prepared:
        """Does all of a swap that can be done once: the checks, conversions, and products of low-rank factors.

        May run on any thread; nothing is changed.

        Raises:
            MismatchError: another base, another mask, or tensors that do not fit.
        """
        check_fit(delta, self.base, self.mask)
        with torch.no_grad():
            writes, undo = self._dense.writes(delta)
            for name, tensor in delta.head.items():
                if name in self._own:
                    undo.append(self._undo_of_head(delta, name, tensor))
                    writes.append(Write(undo[-1].target, tensor))
            parts = None
            if (values := delta.values) is not None:
                parts = tuple(values[segment.part].to(segment.flat.dtype) for segment in self.segments)
        return Prepared(delta, self, parts, tuple(writes), tuple(undo))

    def swap(self, task: Delta | Prepared, version: int | None = None) -> Stamp:
        """Puts ``task`` in place of whatever is there: one indexed write of k values, and its few dense tensors.

        The head is written where the module has one of its shape; a bare backbone ignores it.

        Args:
            task: what `prepare` gave, so that nothing is done again that need not be; a delta is prepared first.
            version: number in a hub, for the stamp.

        Raises:
            MismatchError: another base, another mask, tensors that do not fit, or prepared by another resident; nothing
                was changed.
            ResidentError: the write failed; the base's values are back in place.
            PoisonedError: ... and could not be put back.
        """
        self._check_usable()
        prepared = task if isinstance(task, Prepared) else self.prepare(task)
        delta = prepared.delta
        if prepared.resident is not self:
            raise MismatchError(f"{delta.task} was prepared by another resident", hint="prepare it with this one")
        self._stamp, self._poison = None, "a swap is under way"
        try:
            self._change_undo(prepared.undo)
            if prepared.parts is not None:
                self._write_values(prepared.parts)
            else:
                self._write_base_values()
            for write in prepared.writes:
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

    def _write_values(self, parts: tuple[torch.Tensor, ...]) -> None:
        for segment, part in zip(self.segments, parts, strict=True):
            scatter(segment.flat, segment.index, part.to(segment.flat.device))

    def _write_base_values(self) -> None:
        for segment in self.segments:
            scatter(segment.flat, segment.index, segment.base)

    def _change_undo(self, undo: tuple[Write, ...]) -> None:
        """Undoes what the task in place has written and the next one, of ``undo``, will not write over."""
        before, again = self._undo, {id(write) for write in undo}
        self._undo = (*before, *undo)
        for write in before:
            if id(write) not in again:
                write.run()
        self._undo = undo

    def _write_back(self) -> None:
        """Undoes the dense writes of the task in place."""
        for write in self._undo:
            write.run()
        self._undo = ()

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

    def _undo_of_head(self, delta: Delta, name: str, tensor: torch.Tensor) -> Write:
        """Puts back what the module's own tensor ``name`` was before any task; always the same one."""
        own = self._own[name]
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise MismatchError(
                f"head {name} of {delta.task}", expected=f"{own.dtype} {tuple(own.shape)}",
                got=f"{tensor.dtype} {tuple(tensor.shape)}", hint="bind a module with as many labels",
            )  # fmt: skip
        with self._own_lock:
            if name not in self._own_undo:
                self._own_undo[name] = Write(own.data, own.detach().clone())
            return self._own_undo[name]
