"""What can be configured, checked once: `Config` before the start, `Live` at any time without a restart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deltahub import DeltahubError, VerifyKey
from deltahub.errors import UsageError
from deltahub_serve.scheduler import Limits, Mixing
from deltahub_serve.settings import LibrarySettings

_LIMITS, _LIBRARY = Limits(), LibrarySettings()
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Live(_Checked):
    """What may change while requests are answered: Ray Serve's ``user_config`` of the deployment ``Model``.

    Attributes:
        refresh: seconds after which pushes and moved tags are seen.
        remember: seconds for which a name that cannot be served is not tried again.
        cache_bytes: memory for loaded tasks; pinned ones and those in use come on top.
        batch_rows, batch_tokens: most requests, and most tokens with padding, of a forward pass.
        patience: seconds that a request may wait before its task goes first.
        queued, queued_per_task: most requests that wait in a replica, in all and of one task.
        mixing: whether tasks share forward passes: ``"auto"`` where that is cheaper, ``"always"`` where they can,
            ``"never"``.
        timeout: seconds that a request may take.
        splits: task to shares of its versions, ``{"sst2": {3: 0.9, 4: 0.1}}``, for requests that name no version; the
            shares of a task sum to 1.
        pinned: tasks that are loaded at once and stay.
    """

    refresh: Seconds = _LIBRARY.refresh
    remember: Seconds = _LIBRARY.remember
    cache_bytes: Annotated[int, Field(ge=0)] = _LIBRARY.budget
    batch_rows: Count = _LIMITS.batch_rows
    batch_tokens: Count = _LIMITS.batch_tokens
    patience: Seconds = _LIMITS.patience
    queued: Count = _LIMITS.queued
    queued_per_task: Count = _LIMITS.queued_per_task
    mixing: Mixing = _LIMITS.mixing
    timeout: Seconds = 30.0
    splits: dict[str, dict[Annotated[int, Field(ge=1)], Share]] = {}
    pinned: tuple[str, ...] = ()

    @field_validator("splits")
    @classmethod
    def _whole(cls, splits: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
        for task, shares in splits.items():
            if abs(sum(shares.values()) - 1) > 1e-6:
                told = ", ".join(f"{task}@{number}={share:g}" for number, share in shares.items())
                raise ValueError(
                    f"shares of {task} sum to {sum(shares.values()):g} ({told}); name all, so that they sum to 1"
                )
        return splits

    @property
    def limits(self) -> Limits:
        return Limits(self.batch_rows, self.batch_tokens, self.patience, self.queued, self.queued_per_task, self.mixing)

    @property
    def library(self) -> LibrarySettings:
        return LibrarySettings(self.cache_bytes, self.refresh, self.remember, splits=self.splits)


class Config(_Checked):
    """What a server is started with.

    Attributes:
        hub, base, revision: where the tasks and the base are.
        hub_cache: folder for copies of what a remote hub gave, which the replicas of a machine share; none where None.
        hub_cache_bytes: most bytes there.
        base_name: what clients call the base; its id where None.
        mask: file or digest of the mask; needed only where the hub has several of this base.
        device: a torch device; ``"auto"`` takes a GPU where there is one.
        threads: of torch, in each replica; None takes the CPUs that the replica was given.
        prefetch: tasks that are loaded before the first request.
        default_task: answers requests that name no task.
        max_inputs: most texts of a request.
        max_body: most bytes of a request.
        require_signature: public keys, ``ed25519:...``; a version that none of them signed is not served.
        api_keys, admin_keys: sha256 of each key, in hex. Without an admin key the admin routes are shut.
        live: until the first ``user_config``.
    """

    hub: str
    base: str
    revision: str | None = None
    hub_cache: str | None = None
    hub_cache_bytes: Annotated[int, Field(ge=1)] = 10_000_000_000
    base_name: str | None = None
    mask: str | None = None
    device: str = "auto"
    threads: Count | None = None
    prefetch: tuple[str, ...] = ()
    default_task: str | None = None
    max_inputs: Count = 1024
    max_body: Annotated[int, Field(ge=1024)] = 2_000_000
    require_signature: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    live: Live = Live()

    @field_validator("require_signature")
    @classmethod
    def _public(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(VerifyKey.parse(key).text for key in keys)
        except DeltahubError as error:
            raise ValueError(str(error)) from None

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _hashed(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys):
            raise ValueError("expected the sha256 of each key in hex: a key itself does not belong in a configuration")
        return keys


def hashed_keys(text: str) -> tuple[str, ...]:
    """sha256 of each key in ``text``, one a line or separated by commas; ``#`` begins a comment line.

    Raises:
        UsageError: a key of fewer than 8 characters, or one that no header can carry.
    """
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = [key.strip() for line in lines for key in line.split(",") if key.strip()]
    for number, key in enumerate(keys, start=1):
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"key number {number}", expected="8 or more printable ASCII characters without blanks")
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in dict.fromkeys(keys))


def key_file(path: Path) -> tuple[str, ...]:
    """As `hashed_keys`, from a file.

    Raises:
        UsageError: it cannot be read, or has no key.
    """
    try:
        keys = hashed_keys(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file {path} cannot be read ({error})") from None
    if not keys:
        raise UsageError(f"the key file {path} has no key", expected="one key a line")
    return keys
