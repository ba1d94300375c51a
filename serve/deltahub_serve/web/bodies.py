"""What clients send. The description of a field is also the end of "expected ..." in an error."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema


def _refuse_true(value: bool) -> bool:
    if value:
        raise ValueError("true")
    return value


Name = Annotated[str, Field(min_length=1, max_length=512)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
TwoTexts = Annotated[list[str], Field(min_length=2, max_length=2, fail_fast=True)]
OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2, fail_fast=True)]
Words = Annotated[list[str], Field(min_length=1, fail_fast=True)]
OnlyFalse = Annotated[bool, AfterValidator(_refuse_true), WithJsonSchema({"type": "boolean", "const": False})]
"""As a Literal it would take 0 as well."""

_TASK = "a task (sst2), a version of it (sst2@3) or a tag (sst2:prod)"
_CUT = "true to cut what is longer than the task takes, false to refuse it"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPair(Body):
    text: str
    text_pair: str


class ClassifyBody(Body):
    model: Name | None = Field(None, description=_TASK)
    input: (
        str
        | TextPair
        | Texts
        | Annotated[list[TwoTexts], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TextPair], Field(min_length=1, fail_fast=True)]
    ) = Field(
        description='a text or a list of texts; for a task that compares two, {"text": ..., "text_pair": ...}, a list '
        "of such objects or a list of [first, second]"
    )
    truncate: bool = Field(False, description=_CUT)
    user: str | None = Field(None, description="a name of the client's own, which is not used")


class EmbeddingsBody(Body):
    model: Name | None = Field(None, description=f"{_TASK}, or the name of the base")
    input: str | Texts = Field(description="a text or a list of texts, as token ids are not taken")
    encoding_format: Literal["float", "base64"] = Field("float", description="float or base64")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="the length of the task's vectors")
    truncate: bool = Field(False, description=_CUT)
    user: str | None = Field(None, description="a name of the client's own, which is not used")


class PredictBody(Body):
    model: Name | None = Field(None, description=_TASK)
    inputs: str | OneOrTwo | Annotated[list[OneOrTwo], Field(min_length=1, fail_fast=True)] = Field(
        description="a text, a pair [first, second], or a list of [text] or of [first, second]"
    )
    raw_scores: OnlyFalse = Field(False, description="false, as there are only probabilities here")
    truncate: bool | None = Field(None, description=_CUT)
    truncation_direction: Literal["right", "Right"] = Field("Right", description="Right, where texts are cut")


class EmbedBody(Body):
    model: Name | None = Field(None, description=f"{_TASK}, or the name of the base")
    inputs: str | Texts = Field(description="a text or a list of texts")
    normalize: bool | None = Field(None, description="true or false")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="the length of the task's vectors")
    prompt_name: None = Field(None, description="nothing, as there are no prompts here")
    truncate: bool | None = Field(None, description=_CUT)
    truncation_direction: Literal["right", "Right"] = Field("Right", description="Right, where texts are cut")


class TokenClassifyBody(Body):
    model: Name | None = Field(None, description=_TASK)
    inputs: str | Texts | Annotated[list[Words], Field(min_length=1, fail_fast=True)] = Field(
        description="a text, a list of texts, or a list of texts that are given as lists of their words"
    )
    truncate: bool | None = Field(None, description=_CUT)


class AskBody(Body):
    inputs: str | Texts | Annotated[list[Words], Field(min_length=1, fail_fast=True)] = Field(
        description="a text, a list of texts, or a list of texts that are given as lists of their words"
    )
    pairs: str | Texts | None = Field(None, description="the second text of each, for a task that compares two")
    truncate: bool = Field(True, description=_CUT)
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        None, description="seconds, above 0 and up to 86400"
    )


class RefreshBody(Body):
    names: Annotated[list[Name], Field(max_length=10_000, fail_fast=True)] | None = Field(
        None, description="a list of tasks to look up, or null for all in use"
    )


class NameBody(Body):
    name: Name = Field(description=_TASK)


class EvictBody(Body):
    task: Name | None = Field(None, description="a task, or null for all that are not pinned")
