"""From what a model puts out to answers: one small class for each kind of task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deltahub.encoding import Encoded
from deltahub.errors import FormatError, MismatchError, UsageError
from deltahub.names import TEXT_KINDS
from deltahub.pooling import POOLINGS, pool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from deltahub.manifest import Manifest


class _Plain:
    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Prediction(_Plain):
    """The class of one text.

    Attributes:
        label: the most probable class.
        score: its probability.
        scores: the probability of each class, in the order of the manifest's labels; they sum to 1.
    """

    label: str
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class LabelScores(_Plain):
    """The labels of one text, any number of them.

    Attributes:
        labels: those more probable than 0.5.
        scores: the probability of each label alone, in the order of the manifest's labels.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class Score(_Plain):
    """The number that a regression gives for one text."""

    score: float


@dataclass(frozen=True)
class WordLabel(_Plain):
    """The label of one word.

    Attributes:
        word: as it stands in the text.
        label: the most probable class of its first token.
        score: its probability.
        index: number of the word in the text, from 0.
        start, end: its characters in the text; None where the text was given as words.
    """

    word: str
    label: str
    score: float
    index: int
    start: int | None
    end: int | None


@dataclass(frozen=True)
class WordLabels(_Plain):
    """The words of one text, in their order; a word that was cut off or has no token is not among them."""

    words: tuple[WordLabel, ...]


@dataclass(frozen=True)
class Embedding(_Plain):
    """The vector of one text, (hidden size,) float32."""

    vector: npt.NDArray[np.float32]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"embedding": self.vector.tolist()}


Answer = Prediction | LabelScores | Score | WordLabels | Embedding


def from_dict(kind: str, document: Any) -> Answer:
    """The answer of a task of ``kind`` whose ``as_dict`` is ``document``.

    Raises:
        FormatError: it is none.
    """
    try:
        match kind:
            case "text-classification":
                return Prediction(_text(document["label"]), _number(document["score"]), _scores(document["scores"]))
            case "multi-label-classification":
                return LabelScores(tuple(_text(label) for label in document["labels"]), _scores(document["scores"]))
            case "regression":
                return Score(_number(document["score"]))
            case "token-classification":
                return WordLabels(tuple(_word(word) for word in document["words"]))
            case "embeddings":
                return Embedding(_vector(document["embedding"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"an answer of a task of {kind}: {problem[:160]}") from None
    raise FormatError("the kind of a task", expected=f"one of {', '.join(TEXT_KINDS)}", got=ascii(kind)[:40])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, found {str(value)[:20]}")
    return float(value)


def _scores(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"expected the score of each label, found {type(value).__name__}")
    return {_text(label): _number(score) for label, score in value.items()}


def _word(value: Any) -> WordLabel:
    index, start, end = (value[name] for name in ("index", "start", "end"))
    if type(index) is not int or {type(start), type(end)} not in ({int}, {type(None)}):
        raise TypeError("expected whole numbers for the place of a word")
    return WordLabel(_text(value["word"]), _text(value["label"]), _number(value["score"]), index, start, end)


def _vector(value: Any) -> npt.NDArray[np.float32]:
    import numpy as np

    return np.array([_number(item) for item in value], np.float32)


def check_answerable(manifest: Manifest) -> None:
    """Whether a task of this manifest can be asked at all; `answers` never fails for want of it.

    Raises:
        UsageError: a kind other than those in `names.TEXT_KINDS`.
        MismatchError: no labels where there must be some, or ``inputs`` that cannot be.
    """
    if manifest.kind not in TEXT_KINDS:
        raise UsageError(f"{manifest.task} is of kind {manifest.kind!r}", expected=f"one of {', '.join(TEXT_KINDS)}")
    if manifest.kind.endswith("classification") and not manifest.labels:
        raise MismatchError(f"{manifest.task}, a task of {manifest.kind}", expected="labels", got="none")
    if manifest.kind == "embeddings":
        vector_form(manifest)
    pair = manifest.inputs.get("pair", False)
    if not isinstance(pair, bool) or (pair and manifest.kind == "token-classification"):
        raise MismatchError(
            f"the inputs of {manifest.task}", expected="pair true or false, and false for token classification",
            got=f"pair {str(pair)[:20]}",
        )  # fmt: skip


def vector_form(manifest: Manifest) -> tuple[str, bool]:
    """Pooling of an embedding and whether it is normalised; sentence encoders mostly take the mean and are.

    Raises:
        MismatchError: the manifest's ``inputs`` say what cannot be.
    """
    pooling, normalize = manifest.inputs.get("pooling", "mean"), manifest.inputs.get("normalize", True)
    if pooling not in POOLINGS or not isinstance(normalize, bool):
        raise MismatchError(
            f"the pooling of {manifest.task}", expected=f"one of {', '.join(POOLINGS)}, normalize true or false",
            got=f"{str(pooling)[:20]}, {str(normalize)[:20]}",
        )  # fmt: skip
    return str(pooling), normalize


def answers(
    kind: str, manifest: Manifest, outputs: Any, inputs: Mapping[str, torch.Tensor], encoded: Sequence[Encoded]
) -> list[Answer]:
    """One answer for each row of a batch.

    Args:
        kind: one of `names.TEXT_KINDS`.
        outputs: with ``logits``, (n, labels) or (n, t, labels), or for embeddings ``last_hidden_state``, (n, t, h).
        inputs: what the model was given; its ``attention_mask`` is used.
        encoded: what the rows of ``inputs`` were padded from.

    Raises:
        MismatchError: NaN or infinity.
        UsageError: a kind that has no answers.
    """
    if kind == "embeddings":
        return list(_embeddings(manifest, outputs.last_hidden_state.float(), inputs["attention_mask"]))
    _check_finite(manifest, outputs.logits)
    logits = outputs.logits.double().cpu()
    if kind == "text-classification":
        return [_prediction(manifest.labels, row) for row in logits.softmax(-1).tolist()]
    if kind == "multi-label-classification":
        return [_label_scores(manifest.labels, row) for row in logits.sigmoid().tolist()]
    if kind == "regression":
        return [Score(row[0]) for row in logits.tolist()]
    if kind == "token-classification":
        probabilities = logits.softmax(-1)
        lengths = inputs["attention_mask"].sum(1).tolist()
        left = inputs["attention_mask"][:, 0].eq(0).tolist()
        rows = [
            row[-length:] if padded_left else row[:length]
            for row, length, padded_left in zip(probabilities, lengths, left, strict=True)
        ]
        return [_word_labels(manifest.labels, row, item) for row, item in zip(rows, encoded, strict=True)]
    raise UsageError(f"kind {kind!r} has no answers", expected=f"one of {', '.join(TEXT_KINDS)}")


def _embeddings(manifest: Manifest, states: torch.Tensor, attention_mask: torch.Tensor) -> list[Embedding]:
    pooling, normalize = vector_form(manifest)
    pooled = pool(states, attention_mask, pooling)
    _check_finite(manifest, pooled)
    if normalize:
        length = pooled.norm(dim=-1, keepdim=True)
        _check_finite(manifest, length)  # the squares of a finite vector may overflow
        pooled = pooled / length.clamp(min=1e-12)
    return [Embedding(row) for row in pooled.cpu().numpy()]


def _prediction(labels: Sequence[str], row: list[float]) -> Prediction:
    top = max(range(len(row)), key=row.__getitem__)
    return Prediction(labels[top], row[top], dict(zip(labels, row, strict=True)))


def _label_scores(labels: Sequence[str], row: list[float]) -> LabelScores:
    scores = dict(zip(labels, row, strict=True))
    return LabelScores(tuple(label for label, score in scores.items() if score > 0.5), scores)


def _word_labels(labels: Sequence[str], row: torch.Tensor, item: Encoded) -> WordLabels:
    """``row`` is (t, labels) of probabilities, without padding."""
    scores, tops = (column.tolist() for column in row.max(-1))
    return WordLabels(
        tuple(
            WordLabel(word.text, labels[tops[word.token]], scores[word.token], word.index, word.start, word.end)
            for word in item.words
        )
    )


def _check_finite(manifest: Manifest, values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise MismatchError(
            f"the task {manifest.task} gives NaN or infinity", expected="finite numbers",
            hint="its values overflow on this base: train or convert it again",
        )  # fmt: skip
