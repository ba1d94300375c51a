"""OpenAI's shapes, and vLLM's for classification."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deltahub.answers import Embedding, LabelScores, Prediction, Score
from deltahub_serve.questions import Reply, TaskCard
from deltahub_serve.web.asking import ask, headers_of
from deltahub_serve.web.bodies import ClassifyBody, EmbeddingsBody, TextPair
from deltahub_serve.web.errors import OPENAI, Fault
from deltahub_serve.web.reading import JsonRoute
from deltahub_serve.web.replies import ClassifyReply, EmbeddingsReply, ModelCard, ModelList, responses
from deltahub_serve.web.tasks import card_fields
from deltahub_serve.web.writing import json_response, rows_response

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
CLASSIFIERS = ("text-classification", "multi-label-classification", "regression")


@router.get("/v1/models", responses=responses(OPENAI, ModelList))
async def models(request: Request) -> Response:
    """The base, then every task by name."""
    cards = await request.app.state.backend.cards()
    return json_response({"object": "list", "data": [_model(card) for card in cards]})


@router.get("/v1/models/{name:path}", responses=responses(OPENAI, ModelCard))
async def model(request: Request, name: str) -> Response:
    """One task, with the version of each tag."""
    return json_response(_model(await request.app.state.backend.card(name)))


@router.post("/v1/classify", responses=responses(OPENAI, ClassifyReply))
@router.post("/classify", responses=responses(OPENAI, ClassifyReply))
async def classify(request: Request, body: ClassifyBody) -> Response:
    """Labels and probabilities of texts, or the score of a regression."""
    texts, pairs = _texts_and_pairs(body.input)
    reply = await ask(request, body.model, texts, pairs, kinds=CLASSIFIERS, truncate=body.truncate)
    content = {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": reply.reference,
        "usage": _usage(reply),
    }
    rows = (_classified(index, answer) for index, answer in enumerate(reply.answers))
    return await rows_response(rows, len(reply.answers), headers_of(reply), name="data", beside=content)


@router.post("/v1/embeddings", responses=responses(OPENAI, EmbeddingsReply))
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """Vectors of texts, by an embedding task or by the base."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    reply = await ask(request, body.model, texts, kinds=("embeddings",), truncate=body.truncate)
    check_dimensions(reply, body.dimensions)
    rows = (
        {"object": "embedding", "index": index, "embedding": _embedding(answer, body.encoding_format)}
        for index, answer in enumerate(reply.answers)
    )
    content = {"object": "list", "model": reply.reference, "usage": _usage(reply)}
    return await rows_response(rows, len(reply.answers), headers_of(reply), name="data", beside=content)


def check_dimensions(reply: Reply, wanted: int | None) -> None:
    """Raises Fault where vectors of another length are wanted than the task gives."""
    first = reply.answers[0]
    assert isinstance(first, Embedding)
    if wanted not in (None, len(first.vector)):
        raise Fault(
            "invalid", f"dimensions: expected {len(first.vector)}, which {reply.reference} gives, found {wanted}",
            param="dimensions",
        )  # fmt: skip


def _texts_and_pairs(given: Any) -> tuple[list[str], list[str] | None]:
    items = given if isinstance(given, list) else [given]
    if isinstance(items[0], str):
        return items, None
    both = [(item.text, item.text_pair) if isinstance(item, TextPair) else tuple(item) for item in items]
    return [first for first, _ in both], [second for _, second in both]


def _classified(index: int, answer: object) -> dict[str, Any]:
    match answer:
        case Prediction(label=label, scores=scores):
            probs = list(scores.values())
            return {"index": index, "label": label, "probs": probs, "num_classes": len(probs)}
        case LabelScores(labels=labels, scores=scores):
            top, probs = max(scores, key=scores.__getitem__), list(scores.values())
            return {"index": index, "label": top, "probs": probs, "num_classes": len(probs), "labels": list(labels)}
        case Score(score=score):
            return {"index": index, "label": None, "probs": [], "num_classes": 0, "score": score}
    raise TypeError(f"{type(answer).__name__} is no answer of a classifier")


def _embedding(answer: object, encoding: str) -> list[float] | str:
    assert isinstance(answer, Embedding)
    if encoding == "base64":
        return base64.b64encode(answer.vector.astype("<f4").tobytes()).decode("ascii")
    floats: list[float] = answer.vector.tolist()
    return floats


def _usage(reply: Reply) -> dict[str, int]:
    tokens = sum(reply.tokens)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _model(card: TaskCard) -> dict[str, Any]:
    fields = card_fields(card)
    return {"id": fields.pop("name"), "object": "model", "owned_by": "deltahub", **fields}
