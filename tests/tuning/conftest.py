"""A tiny base with a tokenizer, and a task of each kind that it can learn, all of them about which words a text has."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.mask import Mask
from deltahub.tuning.data import Dataset
from deltahub.tuning.settings import Settings
from tests.models import CONFIGS

if TYPE_CHECKING:
    from deltahub.tuning import DeltaModel
    from deltahub.tuning.train import Trained  # slow to import, and other folders import this file

WORDS = [f"w{number}" for number in range(40)]
FAST = Settings(epochs=3, lr=3e-2, head_lr=1e-1, batch_size=8, max_length=16, seed=15)
"""With it `trained` does best in its second epoch."""
CREATED = "2026-01-02T03:04:05Z"
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
    """Which of two groups of words a text is made of."""
    choose = random.Random(seed)
    groups = {"high": WORDS[:3], "low": WORDS[3:6]}
    labels = tuple(choose.choice(list(groups)) for _ in range(rows))
    texts = tuple(" ".join(choose.choices(groups[label], k=choose.randint(2, 9))) for label in labels)
    return Dataset("text-classification", texts, None, labels, ("high", "low"))


def _texts(rows: int, choose: random.Random, words: list[str], least: int = 2) -> tuple[str, ...]:
    return tuple(" ".join(choose.choices(words, k=choose.randint(least, 6))) for _ in range(rows))


def pair_task(rows: int, seed: int) -> Dataset:
    """Which of two groups of words the second text is made of; the first one says nothing."""
    words = word_task(rows, seed)
    return replace(words, texts=_texts(rows, random.Random(seed), WORDS[:6]), pairs=words.texts)


def multi_label_task(rows: int, seed: int) -> Dataset:
    """Which of three words a text has, among others; some rows have none of them."""
    choose = random.Random(seed)
    texts = _texts(rows, choose, WORDS[:6])
    labels = tuple(tuple(word for word in WORDS[:3] if word in text.split()) for text in texts)
    return Dataset("multi-label-classification", texts, None, labels, tuple(WORDS[:3]))


def score_task(rows: int, seed: int) -> Dataset:
    """The share of a text's words that are of the first group."""
    choose = random.Random(seed)
    texts = _texts(rows, choose, WORDS[:6])
    labels = tuple(sum(word in WORDS[:3] for word in text.split()) / len(text.split()) for text in texts)
    return Dataset("regression", texts, None, labels)


def token_task(rows: int, seed: int) -> Dataset:
    """Words of the first group are entities: the first of a run begins one."""
    choose = random.Random(seed)
    texts = tuple(tuple(text.split()) for text in _texts(rows, choose, WORDS[:6]))
    inside = [[word in WORDS[:3] for word in words] for words in texts]
    labels = tuple(
        tuple(("I-X" if at and row[at - 1] else "B-X") if found else "O" for at, found in enumerate(row))
        for row in inside
    )
    return Dataset("token-classification", texts, None, labels, ("B-X", "I-X", "O"))


def similarity_task(rows: int, seed: int) -> Dataset:
    """A text belongs to the text of the same words in another order."""
    choose = random.Random(seed)
    texts = _texts(rows, choose, WORDS[:12], least=4)
    pairs = tuple(" ".join(choose.sample(text.split(), k=len(text.split()))) for text in texts)
    return Dataset("embeddings", texts, pairs)


def task_of(base: Base, mask: Mask, method: str = "pafi") -> DeltaModel:
    """As a user's script starts: the same seed and model each time."""
    from deltahub.tuning import attach

    torch.manual_seed(0)
    labels = {0: "high", 1: "low"}
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            base.path, dtype="auto", num_labels=2, id2label=labels, label2id={v: k for k, v in labels.items()}
        )
    delta_model: DeltaModel = attach(model, base, mask, method)
    return delta_model


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("text-base"))


@pytest.fixture(scope="session")
def text_base_bf16(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("text-base-bf16"), dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    return word_task(48, seed=1)


@pytest.fixture(scope="session")
def validation() -> Dataset:
    return word_task(24, seed=2)


@pytest.fixture(scope="session")
def mask(text_base: Base) -> Mask:
    return Mask.build(text_base, density=0.1)


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of `trained`; to be copied, not changed."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def trained(text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, state: Path) -> Trained:
    """A finished run, of whose three epochs the best and the last are kept."""
    from deltahub.tuning.train import train

    return train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, created=CREATED, state=state,
        say=lambda line: None,
    )  # fmt: skip
