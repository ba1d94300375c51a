"""Every kind of task from rows to answers: it is learned, and serving it scores what its manifest says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModel

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import UsageError
from deltahub.mask import Mask
from deltahub.predict import Predictor
from deltahub.shared_head import fixed_values
from deltahub.tuning.data import Dataset
from deltahub.tuning.metrics import IGNORED, primary, scores
from deltahub.tuning.settings import Settings
from deltahub.tuning.train import Trained, train
from tests.models import CONFIGS
from tests.tuning.conftest import (
    CREATED,
    WORDS,
    multi_label_task,
    pair_task,
    score_task,
    similarity_task,
    token_task,
    word_task,
    write_tokenizer,
)

FAST = Settings(epochs=2, lr=2e-2, head_lr=6e-2, batch_size=8, max_length=16, seed=2)


def write_clear_base(folder: Path, architecture: str) -> Base:
    """A base whose last states still tell the words apart, so that a small head finds them; without dropout."""
    config = copy.deepcopy(CONFIGS[architecture])
    config.initializer_range = 0.1
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
            if "word_embeddings" in name:
                parameter.normal_()
    with quiet():
        model.save_pretrained(folder)
    write_tokenizer(folder)
    return Base.open(folder, cache=folder / "cache")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_clear_base(tmp_path_factory.mktemp("clear"), "bert")


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    return Mask.build(base, density=0.1)


def run(base: Base, mask: Mask | None, rows: Dataset, validation: Dataset, settings: Settings, **more: Any) -> Trained:
    return train(base, rows, validation, task="t", mask=mask, settings=settings, created=CREATED, say=_silent, **more)


def _silent(_line: str) -> None:
    pass


def synonym_task(rows: int, seed: int) -> Dataset:
    """A text belongs to the text of its words' partners, of which an untrained base knows nothing."""
    texts = similarity_task(rows, seed).texts
    partners = dict(zip(WORDS[:12], WORDS[12:24], strict=True))
    pairs = tuple(" ".join(partners[word] for word in str(text).split()) for text in texts)
    return Dataset("embeddings", texts, pairs)


def served(base: Base, mask: Mask | None, delta: Delta, rows: Dataset) -> float:
    """The primary score of a delta's answers, from the bytes of its file on."""
    predictor = Predictor(base, mask)
    predictor.load(Delta.loads(b"".join(bytes(part) for part in delta.dump())))
    if rows.kind == "embeddings":
        assert rows.pairs is not None
        outputs: Any = (predictor.embed([str(text) for text in rows.texts]), predictor.embed(rows.pairs))
        return scores(rows.kind, [], outputs)[primary(rows.kind)]
    truth: Any = rows.label_ids()
    answers = [answer.as_dict() for answer in predictor.predict(rows.texts, rows.pairs, batch_size=7)]
    if rows.kind == "regression":
        outputs = np.array([answer["score"] for answer in answers])
    elif rows.kind == "token-classification":
        truth, outputs = _by_word(rows, answers, delta.manifest.labels)
    else:
        outputs = np.array([list(answer["scores"].values()) for answer in answers])
        outputs = outputs - 0.5 if rows.kind == "multi-label-classification" else np.log(outputs)
    return scores(rows.kind, truth, outputs, delta.manifest.labels)[primary(rows.kind, rows.names)]


def _by_word(rows: Dataset, answers: list[dict[str, Any]], labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Truth (n, words) and one-hot outputs (n, words, classes); words that were cut off are not counted."""
    width = max(len(text) for text in rows.texts)
    truth = np.full((len(rows), width), IGNORED)
    outputs = np.zeros((len(rows), width, len(labels)))
    for row, answer in enumerate(answers):
        for word in answer["words"]:
            truth[row, word["index"]] = rows.label_ids()[row][word["index"]]
            outputs[row, word["index"], labels.index(word["label"])] = 1
    return truth, outputs


Maker = Callable[[int, int], Dataset]
LEARNED: dict[str, tuple[Maker, Settings, float]] = {
    "words": (word_task, FAST, 0.9),
    "cut words": (word_task, replace(FAST, max_length=5), 0.9),
    "pairs": (pair_task, FAST, 0.8),
    "labels": (multi_label_task, replace(FAST, epochs=4), 0.8),
    "numbers": (score_task, replace(FAST, epochs=4), 0.8),
    "tokens": (token_task, FAST, 0.4),
    "cut tokens": (token_task, replace(FAST, max_length=5), 0.4),
    "vectors": (synonym_task, replace(FAST, epochs=4, batch_size=16), 0.4),
    "last vectors": (synonym_task, replace(FAST, epochs=4, batch_size=16, pooling="last"), 0.2),
    "linear head": (word_task, replace(FAST, head="linear"), 0.9),
    "linear head on cls": (word_task, replace(FAST, head="linear", pooling="cls"), 0.8),
    "linear head for pairs": (pair_task, replace(FAST, epochs=3, head="linear"), 0.8),
    "linear head for labels": (multi_label_task, replace(FAST, epochs=3, head="linear", pooling="mean"), 0.8),
    "linear head for numbers": (score_task, replace(FAST, head="linear", pooling="last"), 0.5),
    "balanced": (word_task, replace(FAST, class_weights="balanced"), 0.9),
}
"""Rows, settings, and a primary score that guessing is far below of."""


@pytest.mark.parametrize("case", LEARNED)
def test_a_kind_is_learned_and_serving_it_scores_what_its_manifest_says(base: Base, mask: Mask, case: str) -> None:
    make, settings, least = LEARNED[case]
    validation = make(40, 2)
    delta = run(base, mask, make(96, 1), validation, settings).delta
    told = delta.manifest.metrics[f"validation_{primary(validation.kind, validation.names)}"]
    assert told > least
    assert served(base, mask, delta, validation) == pytest.approx(told, abs=1e-6)


def test_the_test_rows_are_scored_but_decide_nothing(base: Base, mask: Mask) -> None:
    validation, test = word_task(40, 2), word_task(40, 3)
    with_test = run(base, mask, word_task(48, 1), validation, FAST, test=test).delta
    without = run(base, mask, word_task(48, 1), validation, FAST).delta
    assert with_test.tensors == without.tensors
    assert "test_accuracy" not in without.manifest.metrics
    assert served(base, mask, with_test, test) == pytest.approx(with_test.manifest.metrics["test_accuracy"], abs=1e-6)


def test_a_shared_head_has_the_same_inner_layers_for_every_task(tmp_path: Path) -> None:
    base = write_clear_base(tmp_path, "roberta")
    mask = Mask.build(base, density=0.1)
    settings = replace(FAST, epochs=3, head="shared")
    for make, seed in ((word_task, 1), (score_task, 5)):
        validation = make(40, 2)
        delta = run(base, mask, make(96, 1), validation, replace(settings, seed=seed)).delta
        inner = {name: tensor for name, tensor in delta.head.items() if ".dense." in name}
        assert len(inner) == 2
        for name, tensor in inner.items():
            assert torch.equal(tensor, fixed_values(name, tensor.shape))
        told = delta.manifest.metrics[f"validation_{primary(validation.kind)}"]
        assert told > 0.6
        assert served(base, mask, delta, validation) == pytest.approx(told, abs=1e-6)


def test_balanced_weights_give_a_rare_class_its_share(base: Base) -> None:
    """Of labels that one useless text must guess, the common one is the better guess, unless rare ones count more."""
    rows = Dataset("text-classification", ("w1 w2",) * 80, None, ("common",) * 70 + ("rare",) * 10, ("common", "rare"))
    rare = {}
    for weights in ("none", "balanced"):
        settings = replace(FAST, epochs=4, batch_size=80, class_weights=weights, head_lr=0.3)
        predictor = Predictor(base)
        predictor.load(run(base, None, rows, rows, settings, method="head").delta)
        rare[weights] = predictor.classify(["w1 w2"])[0].scores["rare"]
    assert rare["balanced"] > rare["none"] + 0.1


def test_weights_of_classes_where_there_are_none_are_refused_before_the_training(base: Base, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(UsageError, match="class weights for regression: expected text-classification or multi-label"):
        run(base, None, score_task(20, 1), score_task(10, 2), replace(FAST, class_weights="balanced"), method="head",
            state=state)  # fmt: skip
    assert not state.exists()


@contextmanager
def gradients() -> Iterator[list[list[torch.Tensor]]]:
    """What each optimizer step inside gets to see."""
    seen: list[list[torch.Tensor]] = []

    def note(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def test_accumulated_batches_have_the_gradient_of_one_large_batch(base: Base, mask: Mask) -> None:
    """16 rows are one step, whether they come in one batch or in four."""
    one = replace(FAST, epochs=1, max_grad_norm=0.0)
    found = []
    for size, times in ((16, 1), (4, 4)):
        with gradients() as seen:
            run(base, mask, word_task(16, 1), word_task(8, 2), replace(one, batch_size=size, accumulate=times))
        found.append(seen)
    [whole], [parts] = found
    for left, right in zip(whole, parts, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_gradients_are_scaled_down_to_the_norm(base: Base, mask: Mask) -> None:
    norms = []
    for most in (0.0, 1e-3):
        with gradients() as seen:
            run(base, mask, word_task(32, 1), word_task(8, 2), replace(FAST, epochs=1, max_grad_norm=most))
        norms.append([float(torch.cat([g.flatten() for g in step]).norm()) for step in seen])
    assert min(norms[0]) > 1e-3
    assert norms[1] == pytest.approx([1e-3] * len(norms[1]), rel=1e-2)


def test_recomputed_activations_give_the_same_task(text_base: Base, rows: Dataset, validation: Dataset) -> None:
    """With dropout, whose choices must be drawn again as they were."""
    mask = Mask.build(text_base, density=0.1)  # the mask of this file is of another base
    plain, saving = (
        run(text_base, mask, rows, validation, replace(FAST, epochs=1, checkpointing=on)).delta for on in (False, True)
    )
    assert plain.values is not None
    torch.testing.assert_close(torch.as_tensor(plain.values), torch.as_tensor(saving.values), rtol=1e-3, atol=1e-5)


def test_bf16_learns_and_keeps_fp32_values(base: Base, mask: Mask) -> None:
    delta = run(base, mask, word_task(96, 1), word_task(40, 2), replace(FAST, precision="bf16")).delta
    assert {tensor.dtype for tensor in delta.tensors.values()} == {"F32"}
    assert delta.manifest.metrics["validation_accuracy"] > 0.9
    assert served(base, mask, delta, word_task(40, 2)) > 0.9
