"""The shapes of Hugging Face's Text Embeddings Inference, and of transformers' pipeline for token classification."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deltahub.answers import Embedding, LabelScores, Prediction, Score, WordLabels
from deltahub_serve.questions import Reply
from deltahub_serve.web.asking import ask, headers_of
from deltahub_serve.web.bodies import EmbedBody, PredictBody, TokenClassifyBody
from deltahub_serve.web.errors import TEI, Fault
from deltahub_serve.web.openai import CLASSIFIERS, check_dimensions
from deltahub_serve.web.reading import JsonRoute
from deltahub_serve.web.replies import Entity, ScoredLabel, responses
from deltahub_serve.web.writing import rows_response

router = APIRouter(route_class=JsonRoute, tags=["Text Embeddings Inference"])
_UNIT = 1e-3
"""How far from 1 the length of a normalised float32 vector may be, with much to spare."""


@router.post("/predict", responses=responses(TEI, list[ScoredLabel] | list[list[ScoredLabel]]))
async def predict(request: Request, body: PredictBody) -> Response:
    """Labels of a text or a pair, the most probable one first; a list of them for a list of inputs."""
    single = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
    items: Any = [body.inputs] if single else body.inputs
    rows = [(item,) if isinstance(item, str) else tuple(item) for item in items]
    if len({len(row) for row in rows}) > 1:
        raise Fault(
            "invalid", "inputs: expected all of them as single texts or all as pairs, found both", param="inputs"
        )
    pairs = [row[1] for row in rows] if len(rows[0]) == 2 else None
    reply = await ask(
        request, body.model, [row[0] for row in rows], pairs, kinds=CLASSIFIERS, truncate=bool(body.truncate)
    )
    found = [_scored(answer) for answer in reply.answers]
    return await rows_response(found[0] if single else found, len(found), headers_of(reply))


@router.post("/embed", responses=responses(TEI, list[list[float]]))
async def embed(request: Request, body: EmbedBody) -> Response:
    """Vectors of texts, normalised unless ``normalize`` is false."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    reply = await ask(request, body.model, texts, kinds=("embeddings",), truncate=bool(body.truncate))
    check_dimensions(reply, body.dimensions)
    vectors = _vectors(reply, normalize=body.normalize is not False)
    return await rows_response((vector.tolist() for vector in vectors), len(vectors), headers_of(reply))


@router.post("/token-classify", responses=responses(TEI, list[list[Entity]]))
async def token_classify(request: Request, body: TokenClassifyBody) -> Response:
    """The label of each word of each text."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    reply = await ask(request, body.model, texts, kinds=("token-classification",), truncate=bool(body.truncate))
    rows = (_entities(answer) for answer in reply.answers)
    return await rows_response(rows, len(reply.answers), headers_of(reply))


def _scored(answer: object) -> list[dict[str, Any]]:
    match answer:
        case Prediction(scores=scores) | LabelScores(scores=scores):
            ranked = sorted(scores.items(), key=lambda item: -item[1])
            return [{"score": score, "label": label} for label, score in ranked]
        case Score(score=score):
            return [{"score": score, "label": "score"}]
    raise TypeError(f"{type(answer).__name__} is no answer of a classifier")


def _vectors(reply: Reply, *, normalize: bool) -> npt.NDArray[np.float32]:
    """(n, hidden size); those of a task that normalises stay as they are, to the last bit.

    Raises:
        Fault: vectors that are not normalised are wanted of a task that normalises.
    """
    vectors = np.stack([answer.vector for answer in reply.answers if isinstance(answer, Embedding)])
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    normalised = bool((np.abs(lengths - 1) < _UNIT).all())
    if not normalize and normalised:
        raise Fault(
            "invalid", f"normalize: expected true, as the vectors of {reply.reference} are normalised, found false",
            param="normalize",
        )  # fmt: skip
    if normalize and not normalised:
        return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
    return vectors


def _entities(answer: object) -> list[dict[str, Any]]:
    assert isinstance(answer, WordLabels)
    return [
        {
            "entity": word.label, "score": word.score, "index": word.index, "word": word.word, "start": word.start,
            "end": word.end,
        }
        for word in answer.words
    ]  # fmt: skip
