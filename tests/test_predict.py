from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError, NotFoundError, UsageError
from deltahub.heads import load_tokenizer
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.predict import Predictor
from tests.deltas import random_delta
from tests.models import bits, same_bits
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

TEXTS = ["w0 w1 w2", "w5 w4", "w9", "w1 w2 w3 w4 w5 w6 w7"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("predict-base"))


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    return Mask.build(base, density=0.1)


@pytest.fixture(scope="module")
def deltas(base: Base, mask: Mask) -> dict[str, Delta]:
    """Two tasks on one mask (of 2 and 3 classes), and one of the head alone."""
    two = {"labels": ("high", "low"), "inputs": {"max_length": 16}}
    return {
        "two": random_task(base, mask, "text-classification", task="two", seed=1, **two),
        "three": random_task(base, mask, "text-classification", task="three", seed=2, labels=("a", "b", "c")),
        "head": random_task(base, None, "text-classification", task="head", seed=3, **two),
    }


def embedder(base: Base, mask: Mask, **inputs: object) -> Delta:
    delta = random_delta(base, mask, seed=5, task="embed")
    return delta.with_manifest(kind="embeddings", labels=(), inputs=inputs)


def test_scores_are_probabilities_and_the_label_has_the_highest(base: Base, deltas: dict[str, Delta]) -> None:
    predictor = Predictor(base)
    predictor.load(deltas["three"])
    for prediction in predictor.classify(TEXTS):
        assert list(prediction.scores) == ["a", "b", "c"]
        assert sum(prediction.scores.values()) == pytest.approx(1)
        assert prediction.score == max(prediction.scores.values()) == prediction.scores[prediction.label]


def test_tasks_do_not_disturb_each_other(base: Base, mask: Mask, deltas: dict[str, Delta]) -> None:
    alone = {}
    for task, delta in deltas.items():
        single = Predictor(base, mask)
        single.load(delta)
        alone[task] = single.classify(TEXTS)
    predictor = Predictor(base, mask)
    for delta in deltas.values():
        predictor.load(delta)
    assert predictor.tasks == list(deltas)
    for task in ("two", "head", "three", "two"):
        assert predictor.classify(TEXTS, task=task) == alone[task], task
    assert predictor.classify(TEXTS) == alone["head"]  # the one loaded last


def test_order_is_kept_whatever_the_batches(base: Base, deltas: dict[str, Delta]) -> None:
    predictor = Predictor(base)
    predictor.load(deltas["three"])
    one = predictor.classify(TEXTS, batch_size=1)
    for size in (2, 3, 100):
        for left, right in zip(one, predictor.classify(TEXTS, batch_size=size), strict=True):
            assert left.scores == pytest.approx(right.scores, abs=1e-5)
    assert predictor.classify([]) == []


def test_a_task_without_values_may_come_first(base: Base, deltas: dict[str, Delta]) -> None:
    predictor = Predictor(base)
    predictor.load(deltas["head"])
    before = predictor.classify(TEXTS)
    predictor.load(deltas["two"])
    assert predictor.classify(TEXTS, task="head") == before


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_are_pooled_as_the_manifest_says(base: Base, mask: Mask, pooling: str) -> None:
    delta = embedder(base, mask, pooling=pooling, normalize=False)
    predictor = Predictor(base)
    predictor.load(delta)
    found = predictor.embed(TEXTS, batch_size=3)
    model = load_backbone(base)
    flat = torch.cat([model.state_dict()[tensor.name].reshape(-1) for tensor in base.space.tensors])
    flat[torch.from_numpy(mask.indices.copy())] = delta.values
    parts = flat.split([tensor.size for tensor in base.space.tensors])
    model.load_state_dict(
        {tensor.name: part.view(tensor.shape) for tensor, part in zip(base.space.tensors, parts, strict=True)},
        strict=False,
    )
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            states = model(**load_tokenizer(base)([text], return_tensors="pt")).last_hidden_state[0]
        wanted = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-5)


def test_embeddings_have_length_one_by_default(base: Base, mask: Mask) -> None:
    predictor = Predictor(base)
    predictor.load(embedder(base, mask))
    np.testing.assert_allclose(np.linalg.norm(predictor.embed(TEXTS), axis=1), 1, rtol=1e-5)


def test_what_does_not_fit_is_refused_and_changes_nothing(
    base: Base, mask: Mask, deltas: dict[str, Delta], tmp_path: Path
) -> None:
    predictor = Predictor(base, mask)
    predictor.load(deltas["two"])
    before = predictor.classify(TEXTS)
    other_base = write_text_base(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(MismatchError, match="made on another base"):
        predictor.load(random_delta(other_base, Mask.build(other_base, 0.1), classes=2))
    with pytest.raises(MismatchError, match="aligned to another mask"):
        predictor.load(random_delta(base, Mask.build(base, 0.05), classes=2))
    with pytest.raises(MismatchError, match="the head of sst2: expected a tensor of 2 rows"):
        predictor.load(random_delta(base, mask).with_manifest(labels=("a", "b")))
    with pytest.raises(MismatchError, match="expected RobertaForSequenceClassification"):
        predictor.load(deltas["three"].with_manifest(architecture="RobertaForSequenceClassification"))
    with pytest.raises(UsageError, match="of kind 'text-generation': expected one of text-classification"):
        predictor.load(deltas["two"].with_manifest(kind="text-generation"))
    with pytest.raises(MismatchError, match="two, a task of text-classification: expected labels, found none"):
        predictor.load(deltas["two"].with_manifest(labels=()))
    with pytest.raises(MismatchError, match="the inputs of two: expected pair true or false"):
        predictor.load(deltas["two"].with_manifest(inputs={"pair": 1}))
    with pytest.raises(MismatchError, match="the pooling of embed: expected one of mean, cls, last"):
        predictor.load(embedder(base, mask, pooling="max"))
    assert predictor.tasks == ["two"]
    assert predictor.classify(TEXTS) == before


def test_a_recipe_that_gives_another_mask_is_refused(base: Base, deltas: dict[str, Delta]) -> None:
    manifest: Manifest = deltas["two"].manifest
    assert manifest.mask is not None
    wrong = replace(manifest.mask, digest="0" * 64)
    with pytest.raises(MismatchError, match="the recipe gives another mask"):
        Predictor(base).load(deltas["two"].with_manifest(mask=wrong))


def test_questions_without_an_answer_are_refused(base: Base, mask: Mask, deltas: dict[str, Delta]) -> None:
    predictor = Predictor(base, mask)
    with pytest.raises(NotFoundError, match="no task is loaded"):
        predictor.classify(TEXTS)
    predictor.load(deltas["two"])
    with pytest.raises(NotFoundError, match="task 'sst2' is not loaded: expected one of two"):
        predictor.classify(TEXTS, task="sst2")
    with pytest.raises(UsageError, match="expected kind embeddings, found text-classification"):
        predictor.embed(TEXTS)
    with pytest.raises(UsageError, match="batch_size: expected 1 or more"):
        predictor.classify(TEXTS, batch_size=0)


@pytest.mark.parametrize("length", [-5, 0, 2, 33, 1 << 80, True, "x", None, 16.0])
def test_a_length_that_the_model_cannot_take_is_refused(base: Base, mask: Mask, length: object) -> None:
    with pytest.raises(MismatchError, match=r"max_length of embed: expected 3 to 32, which .* takes, found "):
        Predictor(base).load(embedder(base, mask, max_length=length))


@pytest.mark.parametrize(("kind", "value"), [("classify", float("inf")), ("embed", float("inf")), ("embed", 1e30)])
def test_what_is_no_number_is_never_an_answer(
    base: Base, mask: Mask, deltas: dict[str, Delta], kind: str, value: float
) -> None:
    """A last layer that overflows; the squares of 1e30 overflow only where the length is taken."""
    delta = deltas["two"] if kind == "classify" else embedder(base, mask)
    predictor = Predictor(base, mask)
    predictor.load(delta)
    predictor.resident.swap(delta)
    with torch.no_grad():
        predictor.resident.module.get_parameter("encoder.layer.1.output.LayerNorm.bias").fill_(value)
    with pytest.raises(MismatchError, match=f"the task {delta.task} gives NaN or infinity"):
        getattr(predictor, kind)(TEXTS)


def test_half_a_surrogate_pair_is_refused_by_its_number_and_an_empty_text_is_answered(
    base: Base, deltas: dict[str, Delta]
) -> None:
    predictor = Predictor(base)
    predictor.load(deltas["two"])
    with pytest.raises(UsageError, match="text 2 of 3: expected valid Unicode"):
        predictor.classify(["w1", b"w\xff".decode(errors="surrogateescape"), "w2"])
    assert len(predictor.classify([""])) == 1


def test_answers_leave_the_delta_as_it_was(base: Base, deltas: dict[str, Delta]) -> None:
    before = bits_of(deltas["two"])
    predictor = Predictor(base)
    predictor.load(deltas["two"])
    predictor.load(deltas["three"])
    predictor.classify(TEXTS, task="two")
    assert same_bits(bits_of(deltas["two"]), before)


def bits_of(delta: Delta) -> dict[str, torch.Tensor]:
    holder = torch.nn.Module()
    for number, tensor in enumerate(delta.tensors.values()):
        holder.register_buffer(f"t{number}", tensor.torch())
    return bits(holder)


def test_the_real_base_answers_with_its_own_embeddings(real_base: Base) -> None:
    """A delta of the base's own values embeds as the base does: like sentences lie near each other."""
    mask = Mask.build(real_base)
    tensors = {"values": real_base.gather(mask.indices)}
    manifest = Manifest("same", "embeddings", real_base.ref, mask.ref, inputs={"pooling": "mean", "normalize": True})
    predictor = Predictor(real_base)
    predictor.load(Delta(manifest, tensors))
    cat, kitten, market = predictor.embed(["A cat sleeps.", "The kitten is asleep.", "Stock prices fell today."])
    assert cat @ kitten > 0.5 > 0.2 > cat @ market
