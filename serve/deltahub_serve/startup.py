"""What a worker needs before it can answer: hub, base, mask, and the base in memory; nothing of any task."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from deltahub import Base, Hub, Mask, Mixer, Resident, VerifyKey
from deltahub.backbone import device_named, load_backbone
from deltahub.errors import NotFoundError, UsageError
from deltahub.heads import load_tokenizer
from deltahub.stores.cached import BlobCache
from deltahub_serve.config import Config


@dataclass(frozen=True)
class Parts:
    """What is opened at the start.

    Attributes:
        name: what clients call the base.
        threads: that torch uses for a pass.
        dtype: of the base in memory.
    """

    hub: Hub
    base: Base
    name: str
    resident: Resident
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    threads: int
    dtype: str


def open_parts(config: Config) -> Parts:
    """Opens what ``config`` names.

    Raises:
        DeltahubError: something is not there, is damaged, or does not belong together; the message says what to do.
    """
    cache = BlobCache(Path(config.hub_cache), config.hub_cache_bytes) if config.hub_cache else None
    hub = Hub.open(config.hub, create=False, cache=cache)
    if config.require_signature:
        hub = hub.requiring([VerifyKey.parse(key) for key in config.require_signature])
    base = Base.open(config.base, config.revision)
    name = config.base_name or base.id
    _check_name(hub, name)
    device = device_named(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    mask = find_mask(hub, base, config.mask)
    tokenizer = load_tokenizer(base)
    resident = Resident(load_backbone(base).to(device), base, mask)
    threads = config.threads or len(os.sched_getaffinity(0))
    dtype = str(next(resident.module.parameters()).dtype).removeprefix("torch.")
    return Parts(hub, base, name, resident, tokenizer, device, threads, dtype)


def open_mixer(parts: Parts) -> tuple[Mixer | None, str]:
    """A mixer, or why tasks of this base cannot share passes on this machine."""
    try:
        return Mixer(parts.resident, parts.tokenizer), ""
    except Exception as error:  # noqa: BLE001  (whatever it is, they can be swapped in)
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:300]


def find_mask(hub: Hub, base: Base, wanted: str | None) -> Mask:
    """The mask that the tasks of ``base`` share.

    Args:
        wanted: a mask file, or the digest of a mask in the hub, its first 8 characters or more. None: the only one
            of this base in the hub, and where there is none the default one, which later pushes will fit.

    Raises:
        UsageError: there are several.
        NotFoundError: there is no such file or digest.
        MismatchError: it was made on another base.
    """
    if wanted is not None and Path(wanted).is_file():
        mask = Mask.load(wanted)
        mask.check_base(base)
        return mask
    fitting = [record for record in hub.masks() if record.base.digest == base.digest]
    shown = "; ".join(f"{record.digest[:16]} {dict(record.recipe)}" for record in fitting[:8]) or "none"
    if wanted is not None:
        if not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
            raise NotFoundError(f"no mask file {wanted}", hint=f"the hub's masks of this base: {shown}")
        fitting = [record for record in fitting if record.digest.startswith(wanted)]
        if not fitting:
            raise NotFoundError(f"no mask {wanted} of base {base.id} in the hub", got=shown)
    if len(fitting) > 1:
        raise UsageError(
            f"the hub has {len(fitting)} masks of base {base.id}", expected="one", got=shown,
            hint="choose one with `mask`: its digest, or a file",
        )  # fmt: skip
    if not fitting:
        return Mask.build(base)
    found = hub.mask(fitting[0].digest)
    return found if isinstance(found, Mask) else Mask.rebuild(base, found)


def _check_name(hub: Hub, name: str) -> None:
    try:
        taken = hub.task(name) is not None
    except UsageError:
        return  # a name that no task can have
    if taken:
        raise UsageError(
            f"the hub has a task {name}, and the base is called so too", hint="give the base another name: base_name"
        )
