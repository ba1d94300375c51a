"""A body that is JSON but not what the route takes, in one line that never repeats what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic.fields import FieldInfo

from deltahub_serve.web.errors import Fault


def fault_of(error: RequestValidationError, fields: Mapping[str, FieldInfo]) -> Fault:
    """What is wrong first. The description of a field says what is expected of it."""
    place = error.errors()[0]["loc"][1:]
    if not place:
        found = "nothing" if error.body is None else kind_of(error.body)
        return Fault("invalid", f"the body: expected a JSON object, found {found}")
    name = str(place[0])
    if name not in fields:
        return Fault("invalid", f"{name[:60]!a} is no field of this request; expected {', '.join(fields)}")
    found = kind_of(error.body[name]) if name in error.body else "nothing"
    return Fault("invalid", f"{name}: expected {fields[name].description}, found {found}", param=name)


def kind_of(value: Any) -> str:
    """What a JSON value is, in a few words."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {str(value)[:20]}" if abs(value) < 1e20 else "a huge number"
        case str():
            return f"a text of {len(value):,} characters" if value else "an empty text"
        case list():
            return f"a list of {_kinds(value)}" if value else "an empty list"
    return "an object"


def _kinds(values: list[Any]) -> str:
    names = {str: "texts", list: "lists", dict: "objects", int: "numbers", float: "numbers"}
    found = {names.get(type(value), "other values") for value in values}
    return f"{len(values):,} {' and '.join(sorted(found))}"
