"""The peer: s3fs that puts and gets the same objects, as many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fsspec.asyn import sync
from s3fs import S3FileSystem

from transfer.server import BUCKET


class PlainS3:
    """Neither looks nor checks; every request is made at once for ``at_once`` objects."""

    def __init__(self, at_once: int) -> None:
        self._system = S3FileSystem(
            skip_instance_cache=True, use_listings_cache=False, config_kwargs={"max_pool_connections": 32}
        )
        self._at_once = at_once

    def put(self, prefix: str, objects: Mapping[str, bytes]) -> None:
        self._each(lambda key: self._system._pipe_file(f"{BUCKET}/{prefix}/{key}", objects[key]), objects)

    def get(self, prefix: str, objects: Mapping[str, bytes]) -> dict[str, bytes]:
        return self._each(lambda key: self._system._cat_file(f"{BUCKET}/{prefix}/{key}"), objects)

    def _each(self, job: Callable[[str], Coroutine[Any, Any, Any]], objects: Mapping[str, bytes]) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            turn = asyncio.Semaphore(self._at_once)

            async def one(key: str) -> tuple[str, Any]:
                async with turn:
                    return key, await job(key)

            return dict(await asyncio.gather(*map(one, objects)))

        found: dict[str, Any] = sync(self._system.loop, run)
        return found
