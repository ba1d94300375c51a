"""A tiny base with a tokenizer, and a task that it can learn: which of two groups of words a text is made of."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, PreTrainedTokenizerFast

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.tuning.data import Dataset
from tests.models import CONFIGS

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip


def write_text_base(folder: Path, architecture: str = "bert", dtype: torch.dtype = torch.float32) -> Base:
    """Random weights at a scale at which something can be learned on top of them."""
    config = copy.deepcopy(CONFIGS[architecture])
    config.initializer_range = 0.3
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # biases of exactly zero would fill the mask
    with quiet():
        model.to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    return Base.open(folder, cache=folder / "cache")


def word_task(rows: int, seed: int) -> Dataset:
    choose = random.Random(seed)
    groups = {"high": WORDS[:3], "low": WORDS[3:6]}
    labels = tuple(choose.choice(list(groups)) for _ in range(rows))
    texts = tuple(" ".join(choose.choices(groups[label], k=choose.randint(2, 9))) for label in labels)
    return Dataset(texts, labels, ("high", "low"))


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("text-base"))


@pytest.fixture(scope="session")
def text_base_bf16(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("text-base-bf16"), dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    return word_task(160, seed=1)


@pytest.fixture(scope="session")
def validation() -> Dataset:
    return word_task(40, seed=2)
