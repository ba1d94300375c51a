"""Texts to tokens, words and batches: with real tokenizer files of the kinds that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.encoding import encode, encode_words, pad, word_ids
from deltahub.errors import MismatchError, UsageError
from deltahub.heads import load_tokenizer
from deltahub.pooling import POOLINGS, default_pooling, pool
from tests.models import CONFIGS
from tests.tuning.conftest import write_text_base


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return load_tokenizer(write_text_base(tmp_path_factory.mktemp("encoding")))


@pytest.fixture(scope="module", params=[True, False], ids=["trimmed", "blanks-in-offsets"])
def bytelevel(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """As RoBERTa and GPT-2 have it: a blank is a part of the token that follows it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *letters, "ab", "Ġab"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("Ġ", "ab")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=request.param)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def test_examples_are_what_the_tokenizer_gives_without_padding(wordpiece: PreTrainedTokenizerBase) -> None:
    found = encode(wordpiece, ["w0", "w0 w1 w2 w3 w4"], max_length=5)
    assert [example["input_ids"] for example in found] == [[1, 4, 2], [1, 4, 5, 6, 2]]
    assert found == [dict(wordpiece(text, truncation=True, max_length=5)) for text in ("w0", "w0 w1 w2 w3 w4")]
    assert encode(wordpiece, [], max_length=5) == []
    assert encode(wordpiece, [["w0", "w1"]], max_length=5) == encode(wordpiece, ["w0 w1"], max_length=5)


def test_the_longer_of_a_pair_is_cut_first(wordpiece: PreTrainedTokenizerBase) -> None:
    (example,) = encode(wordpiece, ["w0 w1 w2 w3 w4"], ["w9"], max_length=4)
    assert example["input_ids"] == wordpiece("w0 w1 w2 w3 w4", "w9", truncation="longest_first", max_length=4).input_ids
    assert 13 in example["input_ids"]
    with pytest.raises(UsageError, match="second texts: expected 1, found 2"):
        encode(wordpiece, ["w0"], ["w1", "w2"], max_length=4)


def test_every_token_knows_its_word(wordpiece: PreTrainedTokenizerBase) -> None:
    given = [["w0", "what-ever", "w1"], ["w2"]]
    assert word_ids(wordpiece, given, max_length=32) == [[None, 0, 1, 1, 1, 2, None], [None, 0, None]]
    assert word_ids(wordpiece, given, max_length=4) == [[None, 0, 1, None], [None, 0, None]]
    lengths = [len(example["input_ids"]) for example in encode(wordpiece, given, max_length=32)]
    assert [len(ids) for ids in word_ids(wordpiece, given, max_length=32)] == lengths
    assert word_ids(wordpiece, [["w0", "", "w1"]], max_length=32) == [[None, 0, 2, None]]


def test_words_of_a_text_have_their_place_in_it(wordpiece: PreTrainedTokenizerBase) -> None:
    text = "  w0 (w1)  other"
    (item,) = encode_words(wordpiece, [text], max_length=32)
    assert [word.text for word in item.words] == ["w0", "(", "w1", ")", "other"]
    assert [text[word.start : word.end] for word in item.words] == [word.text for word in item.words]
    assert [word.index for word in item.words] == [0, 1, 2, 3, 4]
    assert [item.tokens["input_ids"][word.token] for word in item.words] == [4, 3, 5, 3, 3]


def test_blanks_in_tokens_do_not_shift_words(bytelevel: PreTrainedTokenizerBase) -> None:
    text = "ab abc  été\nab"
    (item,) = encode_words(bytelevel, [text], max_length=32)
    assert [word.text for word in item.words] == ["ab", "abc", "été", "ab"]
    (given,) = encode_words(bytelevel, [text.split()], max_length=32)
    assert [(word.text, word.index) for word in given.words] == [("ab", 0), ("abc", 1), ("été", 2), ("ab", 3)]
    assert [word.start for word in given.words] == [None] * 4
    running = encode(bytelevel, ["ab ab"], max_length=32)
    assert encode(bytelevel, [["ab", "ab"]], max_length=32) == running  # as in running text, blank and all


def test_a_text_without_a_token_and_half_a_character_are_refused(bytelevel: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="text 2 of 2: expected at least one token"):
        encode(bytelevel, ["ab", ""], max_length=32)
    with pytest.raises(UsageError, match="text 1 of 1: expected valid Unicode"):
        word_ids(bytelevel, [["\ud800"]], max_length=32)


def test_words_need_a_tokenizer_that_knows_offsets(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    slow = CanineTokenizer()
    assert not slow.is_fast
    with pytest.raises(MismatchError, match="CanineTokenizer cannot tell which words its tokens are from"):
        word_ids(slow, ["some text"], max_length=32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers_own(wordpiece: PreTrainedTokenizerBase, side: str) -> None:
    texts = ["w0", "w0 w1 w2", "w5 w6"]
    before, wordpiece.padding_side = wordpiece.padding_side, side
    try:
        found = pad(wordpiece, encode(wordpiece, texts, max_length=32))
        wanted = wordpiece(texts, padding=True, return_tensors="pt")
    finally:
        wordpiece.padding_side = before
    assert found.keys() == wanted.keys()
    for name, column in found.items():
        assert column.dtype == torch.int64
        assert torch.equal(column, wanted[name])


@pytest.mark.parametrize("how", POOLINGS)
def test_padding_never_counts_whichever_side_it_is_on(how: str) -> None:
    states = torch.randn(1, 3, 4)
    noise = torch.full((1, 2, 4), 1e3)
    alone = pool(states, torch.ones(1, 3), how)
    assert torch.equal(pool(torch.cat([states, noise], 1), torch.tensor([[1, 1, 1, 0, 0]]), how), alone)
    assert torch.equal(pool(torch.cat([noise, states], 1), torch.tensor([[0, 0, 1, 1, 1]]), how), alone)
    wanted = {"mean": states.mean(1), "cls": states[:, 0], "last": states[:, 2]}[how]
    torch.testing.assert_close(alone, wanted)


def test_decoders_are_pooled_at_their_last_token() -> None:
    found = {name: default_pooling(config) for name, config in CONFIGS.items()}
    assert {name for name, how in found.items() if how == "last"} == {"gpt2", "llama", "qwen2", "mixtral"}
    assert found["bert"] == found["roberta"] == "mean"
    with pytest.raises(MismatchError, match="the pooling: expected one of mean, cls, last, found max"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")


def test_the_real_tokenizer_finds_words(real_base: Base) -> None:
    text = "Angela Merkel's unbelievability, in Berlin."
    (item,) = encode_words(load_tokenizer(real_base), [text], max_length=64)
    found = [word.text for word in item.words]
    assert found == ["Angela", "Merkel", "'", "s", "unbelievability", ",", "in", "Berlin", "."]
    assert [text[word.start : word.end] for word in item.words] == found


def test_many_threads_may_cut_to_different_lengths_with_one_tokenizer(tmp_path: Path) -> None:
    """A fast tokenizer keeps the length to cut to in itself."""
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = load_tokenizer(write_text_base(tmp_path))
    text = " ".join(["w1"] * 40)

    def cut(number: int) -> bool:
        length = (4, 20)[number % 2]
        return all(len(row["input_ids"]) == length for row in encode(tokenizer, [text] * 3, max_length=length))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(cut, range(400)))


def test_a_model_that_counts_positions_from_its_padding_on_takes_fewer(tmp_path: Path) -> None:
    from deltahub.heads import longest_input, shortest_input

    roberta = write_text_base(tmp_path, "roberta")
    tokenizer = load_tokenizer(roberta)
    tokenizer.model_max_length = 1 << 62
    config = load_backbone(roberta).config
    assert longest_input(tokenizer, config) == config.max_position_embeddings - config.pad_token_id - 1
    assert shortest_input(tokenizer, pair=True) == tokenizer.num_special_tokens_to_add(pair=True) + 2
