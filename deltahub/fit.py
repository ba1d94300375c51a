"""Whether a delta fits a base: every check that must pass before any of its tensors is written anywhere."""

from __future__ import annotations

import numpy as np

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, narrow


def check_fit(delta: Delta, base: Base, mask: Mask | None) -> None:
    """Raises MismatchError unless base, mask and every tensor of ``delta`` fit each other in name, dtype and shape."""
    delta.check_base(base.ref)
    if delta.manifest.mask is not None:
        _check_mask(delta, base, mask)
    for name, raw in delta.raw("dense").items():
        check_dense(base, name, raw)
    for name in adapted(delta):
        _check_adapter(delta, base, name)
    prefix = delta.manifest.backbone_prefix
    if clash := [
        name for name in delta.raw("head") if name.removeprefix(prefix) in base.specs and name.startswith(prefix)
    ]:
        raise MismatchError(
            f"the head of {delta.task} has {clash[0]}", expected="only parameters that the base lacks",
            hint="the delta is damaged or hostile: do not use it",
        )  # fmt: skip


def check_dense(base: Base, name: str, raw: RawTensor) -> None:
    source = base.space.by_name.get(name)
    if source is None:
        raise MismatchError(f"dense tensor {name[:80]}", expected=f"a tensor of base {base.id}")
    if (raw.dtype, raw.shape) != (source.dtype, source.shape):
        raise MismatchError(
            f"dense tensor {name}", expected=f"{source.dtype} {source.shape}", got=f"{raw.dtype} {raw.shape}"
        )


def adapted(delta: Delta) -> list[str]:
    """Base tensors that ``delta`` has low-rank factors for."""
    return sorted({name.rpartition(".")[0] for name in delta.raw("adapter")})


def _check_mask(delta: Delta, base: Base, mask: Mask | None) -> None:
    ref = delta.manifest.mask
    assert ref is not None
    if mask is None or mask.digest != ref.digest:
        raise MismatchError(
            f"{delta.task} is aligned to another mask", expected=f"mask {ref.digest[:16]}",
            got=mask.digest[:16] if mask else "none", hint="bind the base with the delta's own mask",
        )  # fmt: skip
    mask.check_base(base)
    wanted = base.space.widest(mask.indices)
    if (found := delta.tensors["values"].dtype) != wanted:
        raise MismatchError(
            f"values of {delta.task}", expected=f"dtype {wanted}, as the masked tensors have", got=found
        )
    _check_exact(delta, base, mask)


def _check_exact(delta: Delta, base: Base, mask: Mask) -> None:
    """Where masked tensors differ in dtype, each value must be one of its own tensor's numbers."""
    values = delta.tensors["values"]
    for tensor, part in base.space.split(mask.indices):
        if tensor.dtype == values.dtype:
            continue
        wide = values.float32()[part]
        rounded = RawTensor.of_bits(tensor.dtype, wide.shape, narrow(wide, tensor.dtype)).float32()
        if not np.array_equal(rounded.view(np.uint32), wide.view(np.uint32)):
            raise MismatchError(
                f"values of {delta.task} in {tensor.name}", expected=f"numbers that {tensor.dtype} holds exactly",
                hint="values of a base of mixed dtypes cannot be rounded to int8 or int4: push them exact or as bf16",
            )  # fmt: skip


def _check_adapter(delta: Delta, base: Base, name: str) -> None:
    factors = delta.raw("adapter")
    up, down, tensor = factors.get(f"{name}.up"), factors.get(f"{name}.down"), base.space.by_name.get(name)
    fits = (
        up is not None
        and down is not None
        and tensor is not None
        and len(up.shape) == len(down.shape) == 2
        and up.shape[1] == down.shape[0]
        and (up.shape[0], down.shape[1]) == tensor.shape
    )
    if not fits:
        raise MismatchError(
            f"adapter of {name[:80]}", expected="`up` (out x r) and `down` (r x in) of a matrix of the base",
            got=[raw.shape for raw in (up, down) if raw is not None],
        )  # fmt: skip
