"""The methods that bench_tuning.py compares, each as a model with its optimizer, and the batches for them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, ShiraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from deltahub.backbone import load_backbone, quiet
from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.heads import head_names, task_model
from deltahub.mask import Mask
from deltahub.skeletons import backbone_prefix
from deltahub.tuning import DeltaModel, attach

sys.path.insert(0, str(Path(__file__).parent))
from quality.peft_rows import Trainee

KIND, LABELS, ROWS, RANK = "text-classification", ("yes", "no"), 16, 8
FULL, FUSED, FLOOR, PAFI, FIRST, LAST = "full", "full-fused", "frozen", "pafi", "pafi-first", "pafi-last"
DROPPED, LORA, SHIRA = "dropped", "peft-lora", "peft-shira"
METHODS = {
    FULL: "full fine-tuning, torch's AdamW",
    FUSED: "the same, AdamW(fused=True)",
    FLOOR: "frozen, but biases of the first block",
    DROPPED: "frozen, but gradients of the blocks",
    PAFI: "pafi",
    FIRST: "pafi, mask in the first half of the blocks",
    LAST: "pafi, mask in the last half",
    "hiwi": "hiwi",
    "hiwi-weight": "hiwi-weight",
    "bitfit": "bitfit",
    LORA: "PEFT LoRA, r = 8",
    SHIRA: "PEFT SHiRA",
}
Batch = dict[str, torch.Tensor]


class Job:
    """A task model with its optimizer.

    Attributes:
        trained: parameters that the optimizer moves; ``values`` numbers of them are not the head's.
        masters: bytes of those that the task model itself did not have.
        weights: bytes of the task model as it was loaded.
    """

    def __init__(self, method: str, base: Base, masks: Path) -> None:
        torch.manual_seed(0)
        with quiet():
            backbone = load_backbone(base)
            lacking = bind(backbone, base).own
            model = task_model(backbone, backbone.config, KIND, LABELS, lacking=lacking)
            own = {id(parameter) for parameter in model.parameters()}
            self.weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
            head = {name: p for name, p in model.named_parameters() if name in head_names(model, lacking)}
            self.module = _trainee(method, model, head, base, masks)
        self.module.train()
        self.trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if method == DROPPED:
            self.trained = list(head.values())
        self.values = sum(p.numel() for p in self.trained) - sum(p.numel() for p in head.values())
        self.masters = sum(parameter.nbytes for parameter in self.trained if id(parameter) not in own)
        groups = self.module.groups() if isinstance(self.module, DeltaModel) else [{"params": self.trained}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True if method == FUSED else None)

    def update(self, batch: Batch) -> None:
        self.module(**batch).loss.backward()
        self.optimizer.step()

    def step(self, batch: Batch) -> None:
        """Forward, backward, update, and the gradients cleared."""
        self.update(batch)
        self.optimizer.zero_grad()


def _trainee(method: str, model: nn.Module, head: Mapping[str, nn.Parameter], base: Base, masks: Path) -> nn.Module:
    """``model`` made to train what ``method`` does: its parameters that need a gradient are all of that."""
    if method in (PAFI, FIRST, LAST):
        return attach(model, base, Mask.load(masks / f"{method}.mask"))
    if method in ("hiwi", "hiwi-weight", "bitfit"):
        return attach(model, base, method=method)
    if method in (LORA, SHIRA):
        return Trainee(get_peft_model(model, _peft_config(method, model, base)), head)
    wanted = {FLOOR: r"\.0\..*\.bias$", DROPPED: r"\.\d+\."}.get(method, "")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head or re.search(wanted, name) is not None)
        if method == DROPPED and name not in head and parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
    return model


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _peft_config(method: str, model: nn.Module, base: Base) -> PeftConfig:
    names = [backbone_prefix(model) + t.name for t in base.space.scope("blocks") if len(t.shape) == 2]
    found = {name.removesuffix(".weight"): model.get_submodule(name.removesuffix(".weight")) for name in names}
    layers = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
    if method == LORA:
        return LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=list(layers))
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    return ShiraConfig(r=max(1, round(0.005 * base.space.size / per_rank)), random_seed=0, target_modules=list(layers))


def write_masks(base: Base, folder: Path) -> None:
    """Masks of as many values in all blocks, in the first half of them, and in the last."""
    blocks = sorted({int(n) for t in base.space.scope("blocks") for n in re.findall(r"\.(\d+)\.", t.name)})
    half = len(blocks) // 2
    for name, left_out in ((PAFI, []), (FIRST, blocks[half:]), (LAST, blocks[:half])):
        Mask.build(base, exclude=[f"*.{block}.*" for block in left_out]).save(folder / f"{name}.mask")


def random_batch(base: Base, length: int) -> Batch:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, base.config["vocab_size"], (ROWS, length), generator=generator)
    labels = torch.randint(0, len(LABELS), (ROWS,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def write_small(folder: Path) -> None:
    """A random encoder of 1.9 M parameters."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8000, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=512
    )
    with quiet():
        BertModel(config).save_pretrained(folder)
