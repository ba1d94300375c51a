"""Masks by gradient and LIFT's: what they choose, that they choose it again, and how they travel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltahub.backbone import load_backbone
from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.cli import main
from deltahub.errors import CheckpointError, DataError, MismatchError, UsageError
from deltahub.heads import load_tokenizer
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.tuning.masks import gradient_mask, lift_mask
from tests.deltas import random_delta
from tests.tuning.conftest import WORDS, write_text_base, write_tokenizer

TEXTS = [" ".join(WORDS[start : start + 2 + start % 5]) for start in range(24)]


def in_scope(base: Base, mask: Mask, scope: str) -> bool:
    allowed = {tensor.name for tensor in base.space.scope(scope)}
    return {tensor.name for tensor, _ in base.space.split(mask.indices)} <= allowed


@pytest.mark.parametrize("scope", ["blocks", "matrices", "all"])
def test_k_are_chosen_in_ascending_order_and_in_scope(text_base, scope):
    for mask in (gradient_mask(text_base, TEXTS, 0.01, scope), lift_mask(text_base, 0.01, scope, rank=4)):
        assert mask.k == round(0.01 * text_base.space.size)
        assert (np.diff(mask.indices) > 0).all()
        assert in_scope(text_base, mask, scope)


def test_the_same_texts_and_seed_give_the_same_mask_and_others_another(text_base):
    digests = [
        gradient_mask(text_base, texts, 0.01, seed=seed).digest
        for texts, seed in [(TEXTS, 0), (tuple(TEXTS), 0), (TEXTS, 1), ([" ".join(WORDS[20:])] * 3, 0)]
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def exact_diagonal(base: Base, texts: list[str], name: str) -> torch.Tensor:
    """sum_i |d h_i / dw|^2 by one backward pass for every element of every representation."""
    model, tokenizer = load_backbone(base), load_tokenizer(base)
    weight = model.get_parameter(name)
    total = torch.zeros_like(weight)
    for text in texts:
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]
        for element in mean:
            (gradient,) = torch.autograd.grad(element, weight, retain_graph=True)
            total += gradient**2
    return total.detach().reshape(-1)


def test_the_choice_nears_that_of_the_exact_gauss_newton_diagonal(text_base):
    """The estimate is unbiased: with one text seen many times, its largest entries are the exact ones."""
    name, k = "encoder.layer.1.intermediate.dense.bias", 8
    others = [tensor.name for tensor in text_base.space.tensors if tensor.name != name]
    found = gradient_mask(text_base, TEXTS[:1] * 100, k / text_base.space.size, exclude=others, batch_size=1)
    exact = exact_diagonal(text_base, TEXTS[:1], name)
    chosen = exact[torch.from_numpy(found.indices - text_base.space.by_name[name].offset)]
    assert found.k == k
    assert chosen.min() > 0.7 * exact.sort(descending=True).values[k - 1]
    assert chosen.min() > 2 * exact.median()


def test_a_batch_of_texts_scores_what_its_texts_score_alone_on_average(text_base):
    one = gradient_mask(text_base, TEXTS * 5, 0.02, batch_size=2)
    eight = gradient_mask(text_base, TEXTS * 5, 0.02, batch_size=8)
    assert len(np.intersect1d(one.indices, eight.indices)) > 0.7 * one.k


def test_what_cannot_matter_comes_after_everything_that_can(text_base):
    """The pooler's own parameters do not touch the last hidden states; words that no text has are never looked up."""
    mask = gradient_mask(text_base, ["w0 w1 w2"], 0.2, "all")
    names = {tensor.name for tensor, _ in text_base.space.split(mask.indices)}
    assert not any(name.startswith("pooler") for name in names)
    words = text_base.space.by_name["embeddings.word_embeddings.weight"]
    mine = mask.indices[(mask.indices >= words.offset) & (mask.indices < words.offset + words.size)]
    used = {load_tokenizer(text_base).convert_tokens_to_ids(word) for word in ("[CLS]", "[SEP]", "w0", "w1", "w2")}
    assert set((mine - words.offset) // words.shape[1]) <= used


@pytest.fixture(scope="module")
def fused(tmp_path_factory, base_of) -> Base:
    """A base whose experts transformers fuses and stacks, with a tokenizer."""
    import shutil

    folder = tmp_path_factory.mktemp("mixtral-text")
    shutil.copytree(base_of("mixtral").path, folder, dirs_exist_ok=True)
    write_tokenizer(folder)
    return Base.open(folder, cache=folder / "cache")


def test_fused_parameters_score_under_their_own_positions(fused):
    others = [tensor.name for tensor in fused.space.tensors if "experts" not in tensor.name]
    mask = gradient_mask(fused, TEXTS[3:4], 0.02, exclude=others, seed=7)
    signs = torch.randint(0, 2, (1, 32), generator=torch.Generator().manual_seed(7)) * 2 - 1
    model = load_backbone(fused)
    inputs = load_tokenizer(fused)(TEXTS[3], return_tensors="pt")
    (model(**inputs).last_hidden_state.mean(1) * signs).sum().backward()
    scores = np.zeros(fused.space.size, np.float32)
    for place in bind(model, fused).placements:
        if place.trace is not None and place.tensor.grad is not None:
            scores[place.trace.numpy()] = place.tensor.grad.numpy() ** 2
    assert mask.k == round(0.02 * fused.space.size)
    assert scores[mask.indices].min() * 1.0001 >= np.delete(scores, mask.indices).max() > 0
    Resident(load_backbone(fused), fused, mask)  # every position has its place in the module


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_other_architectures_and_dtypes_have_gradients_too(tmp_path, architecture):
    base = write_text_base(tmp_path, architecture, torch.bfloat16)
    mask = gradient_mask(base, TEXTS, 0.02)
    assert mask.k == round(0.02 * base.space.size)
    assert in_scope(base, mask, "blocks")


def test_lift_takes_the_entries_of_a_planted_spike(base_of, tmp_path):
    """A rank-1 spike of small entries in louder noise: magnitudes miss it, the rank-1 approximation finds it."""
    generator = torch.Generator().manual_seed(3)
    tensors = load_file(base_of("bert").path / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"
    rows, columns = tensors[name].shape
    spiky_rows, spiky_columns = torch.arange(0, rows, 4), torch.arange(0, columns, 4)
    noise = torch.randn(rows, columns, generator=generator) * 0.1
    noise[0, 1] = noise[5, 5] = 0.9
    noise[spiky_rows[:, None], spiky_columns] += 0.4
    save_file({name: noise}, tmp_path / "model.safetensors")
    base = Base.open(tmp_path, cache=tmp_path / "cache")
    spike = {int(row * columns + column) for row in spiky_rows for column in spiky_columns}
    found = lift_mask(base, len(spike) / (rows * columns), rank=1)
    assert set(found.indices.tolist()) == spike
    largest = torch.topk(noise.abs().reshape(-1), len(spike)).indices
    assert set(largest.tolist()) != spike


def test_lift_shares_k_by_size_and_gives_vectors_nothing(base_of):
    base = base_of("bert")
    mask = lift_mask(base, 0.0333, "blocks", rank=8)
    held = {tensor.name: part.stop - part.start for tensor, part in base.space.split(mask.indices)}
    matrices = [tensor for tensor in base.space.scope("blocks") if len(tensor.shape) == 2]
    room = sum(tensor.size for tensor in matrices)
    assert sum(held.values()) == mask.k
    assert set(held) == {tensor.name for tensor in matrices}
    assert all(abs(held[tensor.name] - mask.k * tensor.size / room) < 1 for tensor in matrices)
    assert lift_mask(base, 0.0333, "blocks", rank=8).digest == mask.digest


def test_a_full_rank_takes_the_largest_magnitudes(base_of):
    base = base_of("bert")
    name = "encoder.layer.0.output.dense.weight"
    others = [tensor.name for tensor in base.space.scope("matrices") if tensor.name != name]
    mask = lift_mask(base, 50 / base.space.size, rank=1000, exclude=others)
    magnitudes = np.abs(base.read(name).float32())
    expected = np.sort(np.argsort(-magnitudes, kind="stable")[:50]) + base.space.by_name[name].offset
    assert np.array_equal(mask.indices, expected)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"texts": []}, DataError, "no texts"),
        ({"texts": ["fine", "  "]}, DataError, "text 2 of 2"),
        ({"texts": ["\ud800"]}, DataError, "Unicode"),
        ({"texts": "one"}, UsageError, "a list"),
        ({"density": 7}, UsageError, "density"),
        ({"density": 0}, UsageError, "density"),
        ({"scope": "everything"}, UsageError, "blocks, matrices, all"),
        ({"batch_size": 0}, UsageError, "batch_size"),
        ({"max_length": 1}, UsageError, "max_length"),
        ({"seed": -1}, UsageError, "seed"),
        ({"device": "abacus"}, UsageError, "device"),
    ],
)
def test_gradients_that_cannot_be_had_are_refused(text_base, options, error, said):
    with pytest.raises(error, match=said):
        gradient_mask(text_base, **{"texts": TEXTS, **options})


def test_a_base_without_a_tokenizer_is_refused(base_of):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        gradient_mask(base_of("bert"), TEXTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rank": 0}, "rank"), ({"density": 7}, "density"), ({"exclude": ["*weight"]}, "scope 'matrices'")],
)
def test_low_rank_masks_that_cannot_be_had_are_refused(base_of, options, said):
    with pytest.raises(UsageError, match=said):
        lift_mask(base_of("bert"), **options)


def test_such_a_mask_travels_with_the_hub(text_base, tmp_path):
    for mask in (gradient_mask(text_base, TEXTS, 0.02), lift_mask(text_base, 0.02, rank=4)):
        loaded = Mask.load(mask.save(tmp_path / "m.mask"))
        assert (loaded.digest, loaded.recipe) == (mask.digest, mask.recipe)
        hub = Hub.open(tmp_path / f"hub-{mask.recipe['name']}")
        delta = random_delta(text_base, mask)
        with pytest.raises(Exception, match="no recipe can rebuild"):
            hub.push(delta)
        hub.push(delta, mask=mask)
        assert np.array_equal(hub.mask(mask.digest).indices, mask.indices)
        with pytest.raises(MismatchError, match="cannot be rebuilt"):
            Mask.rebuild(text_base, hub.pull(delta.task).manifest.mask)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, text_base):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / ".cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["mask", "build", str(text_base.path), *map(str, arguments), "-o", "m.mask", "--force"])
        return (code, *capsys.readouterr())

    return call


def test_the_command_line_makes_the_same_masks(command, text_base):
    Path("t.txt").write_text("\n".join(TEXTS) + "\n\n")
    Path("t.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS))
    expected = gradient_mask(text_base, TEXTS, 0.01).digest
    Path("t.csv").write_text("text\n" + "\n".join(TEXTS))
    for source in (["t.txt"], ["t.csv"], ["t.jsonl", "--texts-column", "sentence"]):
        code, out, err = command("--recipe", "gradient", "--density", "0.01", "--texts", *source)
        assert (code, out.strip()) == (0, expected), err
    code, out, _ = command("--recipe", "lift", "--density", "0.01", "--rank", "4")
    assert (code, out.strip()) == (0, lift_mask(text_base, 0.01, rank=4).digest)
    assert Mask.load("m.mask").recipe["rank"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--recipe", "gradient"], 2, "--texts FILE"),
        (["--recipe", "random", "--texts", "t.txt"], 2, "--recipe gradient"),
        (["--recipe", "gradient", "--texts", "t.txt", "--rank", "3"], 2, "--recipe lift"),
        (["--recipe", "lift", "--rank", "0"], 2, "rank"),
        (["--recipe", "lift", "--density", "7"], 2, "density"),
        (["--recipe", "gradient", "--texts", "none.txt"], 1, "cannot read none.txt"),
        (["--recipe", "gradient", "--texts", "empty.txt"], 1, "empty.txt has no text"),
        (["--recipe", "gradient", "--texts", "t.docx"], 1, "no known format"),
        (["--recipe", "gradient", "--texts", "bad.jsonl"], 1, "bad.jsonl, line 2"),
        (["--recipe", "gradient", "--texts", "latin.txt"], 1, "not UTF-8"),
    ],
)
def test_the_command_line_refuses_in_one_line(command, arguments, code, said):
    Path("t.txt").write_text("w1 w2\n")
    Path("empty.txt").write_text(" \n\n")
    Path("bad.jsonl").write_text('{"text": "w1"}\n{"other": "w2"}\n')
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    found, _, err = command(*arguments)
    assert found == code
    assert said in err
    assert err.count("\n") == 1
