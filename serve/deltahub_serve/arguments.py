"""What `deltahub_serve.app.build` is given, as typed by people: checked as a whole, one clear error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from deltahub import VerifyKey
from deltahub.errors import UsageError
from deltahub_serve.config import Config, Count, Live, Seconds, hashed_keys, key_file

M = TypeVar("M", bound=BaseModel)
_KEYS = {"api_keys": "DELTAHUB_API_KEYS", "admin_keys": "DELTAHUB_ADMIN_KEYS"}


class Plan(BaseModel):
    """A server and how it is spread over processes.

    Attributes:
        config: of every process.
        replicas: processes that hold the base.
        gateways: processes that take the requests and pass them on; with none each replica takes its own.
        cpus, gpus: of a replica; a replica's torch uses as many threads as it has CPUs.
        stuck_after: seconds that one forward pass may take; a replica that takes longer is replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Config
    replicas: Count = 1
    gateways: Annotated[int, Field(ge=0, le=1000)] = 0
    cpus: Annotated[float, Field(ge=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=1024)] = 0
    stuck_after: Seconds = 60.0

    def arguments(self) -> dict[str, Any]:
        """The same plan as `plan` takes it, without files or variables that must be read."""
        return self.config.model_dump(mode="json") | self.model_dump(mode="json", exclude={"config"})


KNOWN = tuple(
    dict.fromkeys([*Config.model_fields, *Live.model_fields, *Plan.model_fields, *(f"{name}_file" for name in _KEYS)])
)
"""Every argument; those of `Live` stand beside the others or under ``live``."""


def plan(arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Plan:
    """What the arguments mean.

    Args:
        arguments: values as themselves or as strings; several of them separated by commas; splits as
            ``"sst2@3=0.9,sst2@4=0.1"``.
        environment: where keys and the hub are looked for; the process's own if None.

    Raises:
        UsageError: unknown, missing or wrong ones; a key file that cannot be read.
    """
    environment = os.environ if environment is None else environment
    names = [name for name in KNOWN if name != "config"]
    if unknown := sorted(set(arguments) - set(names)):
        raise UsageError(f"unknown argument {', '.join(unknown)}", expected=f"some of {', '.join(names)}")
    given = dict(arguments)
    for name, variable in _KEYS.items():
        given[name] = _keys(given, name, environment.get(variable, ""))
    live = given.pop("live", None) or {}
    if not isinstance(live, Mapping):
        raise UsageError("live", expected="names and values", got=type(live).__name__)
    live = dict(live) | {name: given.pop(name) for name in Live.model_fields if name in given}
    given.setdefault("hub", environment.get("DELTAHUB_HUB"))
    for name in ("hub", "base"):
        if not given.get(name):
            raise UsageError(f"no {name}", hint=f"give {name}=..." + (" or set DELTAHUB_HUB" * (name == "hub")))
    given["require_signature"] = _public_keys(given.get("require_signature"))
    given |= {name: _absolute(str(given[name])) for name in ("hub", "base", "mask") if given.get(name)}
    if given.get("hub_cache"):
        given["hub_cache"] = str(Path(str(given["hub_cache"])).absolute())
    config = {name: _typed(Config, name, given.pop(name)) for name in Config.model_fields if name in given}
    config["live"] = checked(Live, {name: _typed(Live, name, value) for name, value in live.items()})
    if given.get("gateways") is None:
        given["gateways"] = int(str(given.get("replicas", 1)) != "1")
    return checked(Plan, {"config": config, **given})


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """``model(**values)``, with one line for all that is wrong.

    Raises:
        UsageError: something is.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        found = [(".".join(str(part) for part in one["loc"]), one) for one in error.errors()]
        wrong = [f"{where.removeprefix('config.')}: {one['msg']}{_found(where, one)}" for where, one in found]
        hint = None
        if any(one["type"] == "extra_forbidden" for _, one in found):
            hint = f"known are {', '.join(model.model_fields)}"
        raise UsageError("; ".join(wrong), hint=hint) from None


def _found(where: str, error: ErrorDetails) -> str:
    return "" if "keys" in where else f" (found {str(error['input'])[:80]!r})"  # a key must not be shown


def splits(text: str) -> dict[str, dict[int, float]]:
    """``"sst2@3=0.9,sst2@4=0.1"`` as ``{"sst2": {3: 0.9, 4: 0.1}}``.

    Raises:
        UsageError: it is written in another way.
    """
    found: dict[str, dict[int, float]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        reference, _, share = part.partition("=")
        task, _, number = reference.partition("@")
        try:
            found.setdefault(task, {})[int(number)] = float(share)
        except ValueError:
            raise UsageError(f"split {part!r}", expected="TASK@VERSION=SHARE, such as sst2@3=0.9") from None
    return found


def _typed(model: type[BaseModel], name: str, value: Any) -> Any:
    """A string as what the field holds, where pydantic would not split it."""
    if not isinstance(value, str):
        return value
    if name == "splits":
        return splits(value)
    if tuple in (held := model.model_fields[name].annotation, *get_args(held)) or "tuple" in str(held):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _keys(given: dict[str, Any], name: str, variable: str) -> tuple[str, ...]:
    """Hashes of the keys from the arguments, a file and the environment, whichever is given."""
    path = given.pop(f"{name}_file", None)
    told = given.pop(name, None) or ()
    if path:
        return (*_typed(Config, name, told), *key_file(Path(path)))
    return tuple(_typed(Config, name, told)) or hashed_keys(variable)


def _public_keys(told: Any) -> tuple[str, ...]:
    """Public keys themselves, from keys and files of them.

    Raises:
        UsageError: one that is none, a file that cannot be read, or an empty text: it would mean that anything goes.
    """
    if told is None:
        return ()
    sources = _typed(Config, "require_signature", told)
    if isinstance(told, str) and not sources:
        raise UsageError("require_signature", expected="a public key or a file of them", got="nothing")
    return tuple(key.text for source in sources for key in VerifyKey.read(source))


def _absolute(place: str) -> str:
    """A path as it is seen from a process with another working folder; URLs, ids and digests as they are."""
    return str(Path(place).absolute()) if "://" not in place and Path(place).exists() else place
