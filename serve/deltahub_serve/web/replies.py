"""What routes answer, for the OpenAPI document: answers themselves are written straight from plain values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deltahub_serve.questions import REASONS
from deltahub_serve.web.errors import MANNERS, NATIVE, OPENAI, TEI

assert set(REASONS) <= set(MANNERS)


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NativeProblem(Shape):
    reason: str = Field(json_schema_extra={"enum": [*MANNERS]})
    message: str
    near: list[str] = Field(description="names like the one that was not found")
    retry_after: float | None = Field(description="seconds after which the same question may be answered")


class NativeError(Shape):
    error: NativeProblem


class OpenAIProblem(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Shape):
    error: OpenAIProblem


class TeiError(Shape):
    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation"]


class Usage(Shape):
    prompt_tokens: int
    total_tokens: int


class Classified(Shape):
    index: int
    label: str | None = Field(description="the most probable one; null for a regression")
    probs: list[float] = Field(description="in the order of the task's labels")
    num_classes: int
    labels: list[str] | None = Field(None, description="those above 0.5, for a task of several labels")
    score: float | None = Field(None, description="for a regression")


class ClassifyReply(Shape):
    id: str
    object: Literal["list"]
    created: int
    model: str = Field(description="the version that answered, such as sst2@3")
    data: list[Classified]
    usage: Usage


class EmbeddingItem(Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or float32 of little end first in base64")


class EmbeddingsReply(Shape):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str
    labels: list[str]
    pair: bool
    parent: str | None
    versions: list[int]
    tags: dict[str, int | None] = Field(description="tag to version; null where a list does not look it up")
    trouble: str | None


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class Task(Shape):
    name: str
    kind: str
    labels: list[str]
    pair: bool
    parent: str | None
    versions: list[int]
    tags: dict[str, int | None]
    created: int
    trouble: str | None


class TaskList(Shape):
    tasks: list[Task]


class Took(Shape):
    prepare: float
    queue: float
    swap: float
    run: float


class AskReply(Shape):
    task: str
    version: int | None
    digest: str
    kind: str
    labels: list[str]
    answers: list[dict[str, Any]] = Field(description="label and score of each, scores, words or embedding, by kind")
    tokens: list[int]
    seconds: Took
    replica: str


class ScoredLabel(Shape):
    score: float
    label: str


class Entity(Shape):
    entity: str
    score: float
    index: int = Field(description="number of the word in the text, from 0")
    word: str
    start: int | None
    end: int | None


class Health(Shape):
    status: Literal["ok", "degraded", "down"]
    problems: list[str]
    replicas: int = Field(description="that run")
    healthy: int = Field(description="of them, those that can answer")
    wanted: int = Field(description="that should run")


class Info(Shape):
    model_id: str
    model_sha: str | None
    model_dtype: str | None
    max_client_batch_size: int
    default_task: str | None
    version: str
    replicas: list[dict[str, Any]]


class Start(Shape):
    name: str
    version: str
    routes: list[str]
    openapi: str


class Refreshed(Shape):
    changed: dict[str, list[str] | None] = Field(description="by replica; null where one did not answer in time")


class Pinned(Shape):
    pinned: dict[str, str | None]


class Unpinned(Shape):
    unpinned: dict[str, bool | None]


class Evicted(Shape):
    evicted: dict[str, int | None]


class States(Shape):
    replicas: list[dict[str, Any]]


Responses = dict[int | str, dict[str, Any]]
_ERRORS: dict[str, type[Shape]] = {NATIVE: NativeError, OPENAI: OpenAIError, TEI: TeiError}


def failures(family: str) -> Responses:
    """Of every route of ``family``."""
    error = {"model": _ERRORS[family]}
    return {
        "4XX": {**error, "description": "The request cannot be answered as it is."},
        "5XX": {**error, "description": "The server cannot answer now."},
    }


def responses(family: str, model: Any) -> Responses:
    """Of a route of ``family`` that answers ``model``."""
    return {200: {"model": model}, **failures(family)}
