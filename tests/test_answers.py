"""Each kind of task answers what transformers' own classes and pipelines answer with the same weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from deltahub.answers import Answer, Embedding, LabelScores, Prediction, Score, WordLabels, answers
from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.convert.materialize import HEAD_FILE, has_own_head, materialize
from deltahub.delta import Delta
from deltahub.encoding import Encoded
from deltahub.errors import MismatchError, UsageError
from deltahub.mask import Mask
from deltahub.predict import Predictor
from tests.tasks import LABELS, random_task
from tests.tuning.conftest import write_text_base

TEXTS = ["w0 w1 w2", "w5 w4", "w9", "w1 w2 w3 w4 w5 w6 w7", "w30 nothing w31"]
PAIRS = ["w7", "w8 w9 w10", "w1", "w2 w2", "w0"]
POOLED = ("text-classification", "multi-label-classification", "regression")
KINDS = (*POOLED, "token-classification", "embeddings")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {name: write_text_base(tmp_path_factory.mktemp(name), name) for name in ("bert", "roberta", "llama", "gpt2")}


@pytest.fixture(scope="module")
def masks(bases: dict[str, Base]) -> dict[str, Mask]:
    return {name: Mask.build(base, density=0.05) for name, base in bases.items()}


def near(wanted: list[float], kind: str) -> object:
    """Probabilities to 1e-6; a regression's numbers are not squashed, so their fp32 rounding shows."""
    return pytest.approx(wanted, abs=1e-5 if kind == "regression" else 1e-6)


def ask(base: Base, delta: Delta, *, batch_size: int = 3, pairs: list[str] | None = None) -> list[Answer]:
    predictor = Predictor(base)
    predictor.load(delta)
    return predictor.predict(TEXTS, pairs, batch_size=batch_size)


def numbers(item: Answer) -> list[float]:
    match item:
        case Prediction() | LabelScores():
            return list(item.scores.values())
        case Score():
            return [item.score]
        case WordLabels():
            return [word.score for word in item.words]
        case Embedding():
            return item.vector.tolist()


def logits(model: torch.nn.Module, folder: Path, pairs: list[str] | None = None) -> list[torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [
            model(**tokenizer(text, pairs[row] if pairs else None, return_tensors="pt")).logits[0].double()
            for row, text in enumerate(TEXTS)
        ]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama", "gpt2"])
@pytest.mark.parametrize("kind", POOLED)
def test_native_heads_answer_as_the_materialized_model_does(
    bases: dict[str, Base], masks: dict[str, Mask], tmp_path: Path, kind: str, architecture: str
) -> None:
    base = bases[architecture]
    delta = random_task(base, masks[architecture], kind, inputs={"pair": True})
    folder = materialize(base, delta, tmp_path / "full")
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for row, item in zip(logits(model, folder, PAIRS), ask(base, delta, pairs=PAIRS), strict=True):
        wanted = {POOLED[0]: row.softmax(-1), POOLED[1]: row.sigmoid(), POOLED[2]: row}[kind].tolist()
        assert numbers(item) == near(wanted, kind)
        if isinstance(item, Prediction):
            assert (item.label, item.score) == (LABELS[int(row.argmax())], max(item.scores.values()))
        if isinstance(item, LabelScores):
            assert item.labels == tuple(label for label, number in zip(LABELS, row.tolist(), strict=True) if number > 0)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_words_are_labelled_as_transformers_own_pipeline_labels_them(
    bases: dict[str, Base], masks: dict[str, Mask], tmp_path: Path, architecture: str
) -> None:
    base = bases[architecture]
    delta = random_task(base, masks[architecture], "token-classification")
    folder = materialize(base, delta, tmp_path / "full")
    with quiet():
        model = AutoModelForTokenClassification.from_pretrained(folder).eval()
        ask_them = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
        theirs = ask_them(TEXTS)
    for text, item, wanted in zip(TEXTS, ask(base, delta), theirs, strict=True):
        assert isinstance(item, WordLabels)
        assert [word.word for word in item.words] == text.split()
        assert [text[word.start : word.end] for word in item.words] == text.split()
        assert [word.label for word in item.words] == [word["entity"] for word in wanted]
        assert numbers(item) == pytest.approx([float(word["score"]) for word in wanted], abs=1e-6)


def test_words_may_be_given_as_such(bases: dict[str, Base], masks: dict[str, Mask]) -> None:
    predictor = Predictor(bases["bert"])
    predictor.load(random_task(bases["bert"], masks["bert"], "token-classification", inputs={"max_length": 5}))
    whole, given = predictor.predict(["w1 w2 w3 w4 w5", ["w1", "w2", "w3", "w4", "w5"]], batch_size=1)
    assert isinstance(whole, WordLabels)
    assert isinstance(given, WordLabels)
    assert [word.index for word in given.words] == [0, 1, 2]  # what was cut off has no label
    assert given.words == tuple(dataclasses.replace(word, start=None, end=None) for word in whole.words)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("kind", POOLED)
def test_a_linear_head_is_materialized_as_the_bare_model_and_the_head(
    bases: dict[str, Base], masks: dict[str, Mask], tmp_path: Path, kind: str, architecture: str
) -> None:
    base = bases[architecture]
    delta = random_task(base, masks[architecture], kind, head="linear")
    assert (delta.manifest.architecture, delta.manifest.backbone_prefix) == ("LinearHead", "backbone.")
    assert sorted(delta.head) == ["classifier.bias", "classifier.weight"]
    assert has_own_head(delta)
    folder = materialize(base, delta, tmp_path / "bare")
    with quiet():
        model = AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == base.config["architectures"][0]
    config = json.loads((folder / "config.json").read_text())
    if kind != "regression":
        assert list(config["id2label"].values()) == list(LABELS)
    with safe_open(folder / HEAD_FILE, "pt") as head:
        weight, bias = head.get_tensor("classifier.weight"), head.get_tensor("classifier.bias")
        pooling = head.metadata()["pooling"]
    assert pooling == {"bert": "mean", "llama": "last"}[architecture]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, item in zip(TEXTS, ask(base, delta), strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        row = ((states.mean(0) if pooling == "mean" else states[-1]) @ weight.T + bias).double()
        wanted = {POOLED[0]: row.softmax(-1), POOLED[1]: row.sigmoid(), POOLED[2]: row}[kind].tolist()
        assert numbers(item) == near(wanted, kind)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_batch(
    bases: dict[str, Base], masks: dict[str, Mask], kind: str, architecture: str
) -> None:
    base, mask = bases[architecture], masks[architecture]
    for head in ("native", "linear") if kind in POOLED else ("native",):
        delta = random_task(base, mask, kind, head=head, inputs={"normalize": True} if kind == "embeddings" else None)
        alone = [numbers(item) for item in ask(base, delta, batch_size=1)]
        for size in (2, 5):
            for left, right in zip(alone, ask(base, delta, batch_size=size), strict=True):
                assert left == near(numbers(right), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_plain_json(bases: dict[str, Base], masks: dict[str, Mask], kind: str) -> None:
    for item in ask(bases["bert"], random_task(bases["bert"], masks["bert"], kind)):
        found = json.loads(json.dumps(item.as_dict()))
        keys = {
            "text-classification": {"label", "score", "scores"}, "multi-label-classification": {"labels", "scores"},
            "regression": {"score"}, "token-classification": {"words"}, "embeddings": {"embedding"},
        }  # fmt: skip
        assert found.keys() == keys[kind]


def test_pairs_go_to_tasks_of_pairs_and_to_no_others(bases: dict[str, Base], masks: dict[str, Mask]) -> None:
    base, mask = bases["bert"], masks["bert"]
    single, double = random_task(base, mask, KINDS[0]), random_task(base, mask, KINDS[0], inputs={"pair": True})
    with pytest.raises(UsageError, match="task takes single texts"):
        ask(base, single, pairs=PAIRS)
    with pytest.raises(UsageError, match="task compares pairs of texts: expected a second text for each"):
        ask(base, double)
    with pytest.raises(UsageError, match="second texts: expected 5, found 1"):
        ask(base, double, pairs=["w1"])
    words = random_task(base, mask, "token-classification").with_manifest(inputs={"pair": True})
    with pytest.raises(MismatchError, match="and false for token classification"):
        ask(base, words)
    predictor = Predictor(base)
    predictor.load(single)
    with pytest.raises(UsageError, match="expected texts, found lists of words"):
        predictor.predict([["w1", "w2"]])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_is_no_answer(bases: dict[str, Base], masks: dict[str, Mask], kind: str) -> None:
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        last_hidden_state: torch.Tensor

    nothing = torch.full((1, 2, 3), np.nan)
    manifest = random_task(bases["bert"], masks["bert"], kind).manifest
    with pytest.raises(MismatchError, match="the task task gives NaN or infinity"):
        answers(kind, manifest, Output(nothing, nothing), {"attention_mask": torch.ones(1, 2)}, [Encoded({})])


def test_words_are_found_whichever_side_the_padding_is_on(
    bases: dict[str, Base], masks: dict[str, Mask], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(bases["llama"])  # rotary positions are relative: padding on the left moves nothing
    predictor.load(random_task(bases["llama"], masks["llama"], "token-classification"))
    alone = predictor.predict(TEXTS, batch_size=1)
    monkeypatch.setattr(predictor._tokenizer, "padding_side", "left")
    for left, right in zip(alone, predictor.predict(TEXTS), strict=True):
        assert numbers(left) == pytest.approx(numbers(right), abs=1e-6)
