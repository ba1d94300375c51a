"""Baselines that PEFT trains, in the loop that trains ours: LoRA, and SHiRA with about as many values as a mask has."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from deltahub.backbone import load_backbone, quiet
from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.encoding import encode, pad
from deltahub.heads import head_names, load_tokenizer, task_model
from deltahub.skeletons import backbone_prefix
from deltahub.tuning import loop
from deltahub.tuning.data import Dataset
from deltahub.tuning.settings import Settings

KIND = "text-classification"
RANK = 8
DENSITY = 0.005
_QUERY_VALUE = ("query", "value", "q_lin", "v_lin", "q_proj", "v_proj", "query_proj", "value_proj")


class Trainee(nn.Module):
    """What `loop.fit` trains: the PEFT model, of whose state only what is trained is kept.

    Args:
        model: a task model that PEFT has wrapped.
        head: names of its head's parameters before that.
    """

    def __init__(self, model: nn.Module, head: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        for parameter in head.values():
            parameter.requires_grad_(True)
        own = {id(parameter) for parameter in head.values()}
        self.head = dict(head)
        self.adapter = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in own}

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.model(**inputs)

    def state_dict(self, *_args: Any, **_options: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {name: parameter.detach() for name, parameter in {**self.adapter, **self.head}.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        for name, parameter in {**self.adapter, **self.head}.items():
            parameter.copy_(state_dict[name])
        return nn.modules.module._IncompatibleKeys([], [])


@dataclass(frozen=True)
class Peft:
    """A trained baseline.

    Attributes:
        metrics, step_seconds: as `deltahub.train` gives them.
    """

    trainee: Trainee
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]
    step_seconds: float
    max_length: int
    labels: tuple[str, ...]

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text."""
        examples = encode(self.tokenizer, texts, max_length=self.max_length)
        order = sorted(range(len(texts)), key=lambda row: len(examples[row]["input_ids"]))
        found = [""] * len(texts)
        self.trainee.eval()
        device = next(iter(self.trainee.head.values())).device
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = {name: t.to(device) for name, t in pad(self.tokenizer, [examples[row] for row in rows]).items()}
            with torch.inference_mode():
                classes = self.trainee(**batch).logits.argmax(-1).tolist()
            for row, number in zip(rows, classes, strict=True):
                found[row] = self.labels[number]
        return found

    def round_to_bf16(self) -> None:
        """Rounds the adapter, not the head."""
        with torch.no_grad():
            for parameter in self.trainee.adapter.values():
                parameter.copy_(parameter.bfloat16())

    def stored(self, dtype: torch.dtype = torch.float32) -> dict[str, int]:
        """Bytes of the adapter as PEFT saves it, in ``dtype`` (indices as they are), and of the head in a file."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            self.trainee.model.save_pretrained(folder)  # type: ignore[operator]
            file = Path(folder, "adapter_model.safetensors")
            tensors = load_file(file)
            cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
            save_file(cast, file)
            head = {name: parameter.detach().cpu().contiguous() for name, parameter in self.trainee.head.items()}
            save_file(head, Path(folder, "head.safetensors"))
            return {"rest": file.stat().st_size, "head": Path(folder, "head.safetensors").stat().st_size}


def train(
    base: Base,
    kind: tuple[str, str],
    rows: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    device: str,
) -> Peft:
    """Trains ``lora`` or ``shira`` on ``all`` linear layers of the blocks or on ``qv``, query and value."""
    import peft

    with tempfile.TemporaryDirectory(prefix="deltahub-") as folder, quiet():
        set_seed(settings.seed)
        backbone = load_backbone(base).to(device)
        lacking = bind(backbone, base).own
        model = task_model(backbone, backbone.config, KIND, rows.names, lacking=lacking)
        head = head_names(model, lacking)
        head_parameters = {name: p for name, p in model.named_parameters() if name in head}
        trainee = Trainee(peft.get_peft_model(model, _config(kind, model, base, settings.seed)), head_parameters)
        tokenizer = load_tokenizer(base)
        fitted = loop.fit(
            trainee,
            [
                {"params": list(trainee.adapter.values()), "lr": settings.lr, "weight_decay": settings.weight_decay},
                {"params": list(trainee.head.values()), "lr": settings.head_lr, "weight_decay": 0.0},
            ],
            rows, validation, settings,
            tokenizer=tokenizer, folder=Path(folder), say=lambda line: None,
        )  # fmt: skip
    return Peft(trainee, tokenizer, fitted.metrics, fitted.step_seconds, settings.max_length or 128, rows.names)


def _config(kind: tuple[str, str], model: nn.Module, base: Base, seed: int) -> Any:
    import peft

    what, where = kind
    layers = _linear_layers(model, base, where)
    if what == "lora":
        return peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=list(layers))
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    rank = max(1, round(DENSITY * base.space.size / per_rank))
    return peft.ShiraConfig(r=rank, random_seed=seed, target_modules=list(layers))


def _linear_layers(model: nn.Module, base: Base, where: str) -> dict[str, nn.Linear]:
    """Linear layers of the base's blocks by their name in ``model``."""
    modules = dict(model.named_modules())
    names = [tensor.name.removesuffix(".weight") for tensor in base.space.scope("blocks") if len(tensor.shape) == 2]
    names = [name for name in names if where == "all" or name.rpartition(".")[2] in _QUERY_VALUE]
    found = {prefixed: modules.get(prefixed) for prefixed in (backbone_prefix(model) + name for name in names)}
    return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
