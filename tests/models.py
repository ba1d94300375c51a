"""Tiny random checkpoints of real architectures, written to disk as a user would have them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from deltahub.checkpoint import Base

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    ),
    "roberta": RobertaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    ),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=40, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=40,
    ),
    "qwen2": Qwen2Config(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=40,
    ),
    "t5": T5Config(
        vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
    ),
    "vit": ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8,
    ),
    "mixtral": MixtralConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=40,
    ),
}  # fmt: skip
"""Mixtral is there because transformers fuses and stacks its experts when it loads them."""


def write_base(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A checkpoint of the bare model with random weights and biases (no two tensors equal)."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(copy.deepcopy(CONFIGS[architecture]))  # saving notes a dtype in it
    randomise(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def randomise(model: torch.nn.Module, scale: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)


def load(folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, dtype="auto").eval()


def load_classifier(folder: Path, labels: int = 3) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", num_labels=labels).eval()


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].contiguous().view(torch.uint8), right[name].contiguous().view(torch.uint8))
        for name in left
    )


def a_bias(base: Base) -> str:
    """Name of a bias, or of the like, within a block."""
    return next(t.name for t in base.space.tensors if t.name.endswith(("bias", "norm.weight")) and t.role == "block")
