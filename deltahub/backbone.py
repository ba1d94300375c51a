"""Loading the bare model of a base with transformers, quietly and without running code from the checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_backbone(base: Base) -> PreTrainedModel:
    """The base as `AutoModel`, in the checkpoint's own dtype, in evaluation mode.

    Raises:
        CheckpointError: no config.json, one that does not fit the weights, or an architecture that transformers does
            not have without code of its own.
    """
    from transformers import AutoModel

    if not isinstance(base.config.get("model_type"), str):
        raise CheckpointError(f"{base.path} has no config.json with a model_type", hint="add the model's config.json")
    try:
        with quiet():
            model: PreTrainedModel = AutoModel.from_pretrained(
                base.path, dtype="auto", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # noqa: BLE001 (an odd config.json makes transformers fail in any way there is)
        raise CheckpointError(
            f"transformers cannot load {base.id} ({' '.join(str(error).split())[:200]})",
            hint="code from a checkpoint is never run; bind a module of your own with Resident(module, base, mask)",
        ) from None
    heads = getattr(model.config, "num_attention_heads", 1)
    if isinstance(heads, int) and heads < 1:  # a model without a head loads, and fails in its first forward pass
        raise CheckpointError(
            f"num_attention_heads in the config.json of {base.id}", expected="1 or more", got=heads,
            hint="restore the model's config.json",
        )  # fmt: skip
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars, load reports and warnings of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def device_named(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        UsageError: torch has none here, or it holds no numbers.
    """
    import torch

    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        reason = str(error).partition("\n")[0][:100]
        raise UsageError(f"device {name!r} ({reason})", expected="cpu, or a device that torch sees here") from None
    if device.type == "meta":
        raise UsageError("device 'meta' holds no numbers", expected="cpu, or a device that torch sees here")
    return device
