"""Cutting texts to a length: as the tokenizers themselves do it, for every kind of them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CanineTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltahub.checkpoint import Base
from deltahub.heads import load_tokenizer
from deltahub.tokenizing import tokenize
from tests.tuning.conftest import write_tokenizer

WORDS = [f"w{number}" for number in range(20)]
SPECIAL = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
TEMPLATES = {
    "bert": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    "roberta": processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    "template": processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $B:1 </s> $A:0 </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    ),
    "llama": processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]),
    "bytes": processors.ByteLevel(),
    "none": None,
}


def made(name: str) -> PreTrainedTokenizerFast:
    vocabulary = SPECIAL | {word: number for number, word in enumerate(WORDS, start=len(SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if TEMPLATES[name] is not None:
        tokenizer.post_processor = TEMPLATES[name]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def drawn(choose: random.Random, most: int) -> str:
    return " ".join(choose.choices([*WORDS, "</s>"], k=choose.randint(1, most)))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [*TEMPLATES, "real"])
def test_texts_are_cut_as_the_tokenizer_cuts_them(name: str, side: str, paired: bool, real_base: Base) -> None:
    tokenizer, theirs = ((load_tokenizer(real_base) if name == "real" else made(name)) for _ in range(2))
    tokenizer.truncation_side = theirs.truncation_side = side
    choose = random.Random(4)
    for length in range(4, 16):
        texts = [drawn(choose, 14) for _ in range(12)]
        pairs = [drawn(choose, 14) for _ in texts] if paired else None
        whole = theirs(texts, pairs, truncation=False)
        wanted = theirs(texts, pairs, truncation=True, max_length=length, return_offsets_mapping=True)
        spans = wanted.pop("offset_mapping")
        for number, row in enumerate(tokenize(tokenizer, texts, pairs, length, places=True)):
            assert row.tokens == {column: values[number] for column, values in wanted.items()}
            assert row.whole == len(whole["input_ids"][number])
            assert row.spans == spans[number]
            assert row.words == wanted.word_ids(number)


def test_long_pairs_take_no_time_and_memory_by_their_product() -> None:
    """The tokenizer's own cut makes something of every combination of what it cuts off: minutes and gigabytes here."""
    long = " ".join(WORDS * 500)
    (row,) = tokenize(made("bert"), [long], [long], 16)
    assert row.whole == 20_003
    assert len(row.tokens["input_ids"]) == 16


def test_nothing_that_others_set_in_the_tokenizer_changes_the_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = tokenize(tokenizer, ["w1 w2 w3 w4"], None, 5)
    tokenizer(["w1 w2"], truncation=True, max_length=3, padding="max_length")
    assert tokenize(tokenizer, ["w1 w2 w3 w4"], None, 5) == wanted
    assert [len(row.tokens["input_ids"]) for row in tokenize(tokenizer, ["w1", "w1 w2"], None, 5)] == [3, 4]


@pytest.mark.parametrize("paired", [False, True])
def test_a_tokenizer_in_python_cuts_by_itself(paired: bool) -> None:
    tokenizer: PreTrainedTokenizerBase = CanineTokenizer()
    texts = ["a longer text than fits", "short"]
    pairs = ["with another", "one"] if paired else None
    whole = tokenizer(texts, pairs)["input_ids"]
    wanted = tokenizer(texts, pairs, truncation=True, max_length=12)
    rows = tokenize(tokenizer, texts, pairs, 12)
    assert [row.tokens for row in rows] == [{name: wanted[name][number] for name in wanted} for number in range(2)]
    assert [row.whole for row in rows] == [len(ids) for ids in whole]


def test_threads_that_cut_and_threads_that_do_not_share_a_tokenizer() -> None:
    tokenizer = made("bert")
    text = " ".join(WORDS)

    def cut(number: int) -> bool:
        length = (5, 9, 100)[number % 3]
        rows = tokenize(tokenizer, [text, "w1"], None, length)
        return [len(row.tokens["input_ids"]) for row in rows] == [min(length, 22), 3]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(cut, range(600)))
