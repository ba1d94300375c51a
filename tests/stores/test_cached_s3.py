"""A cache and a pace over a real protocol: ranges that end where the object ends, and after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deltahub.stores.cached import BlobCache, CachedStore
from deltahub.stores.paced import Pace, PacedStore
from deltahub.stores.s3 import S3Store
from tests.stores.watched import put_blob

STEP = Pace(1).step


@pytest.mark.parametrize("length", [1, STEP - 1, STEP, STEP + 1, 3 * STEP])
@pytest.mark.parametrize("more", [None, 0, 1])
def test_a_blob_comes_whole_in_any_number_of_pieces(
    new_s3_store: Callable[..., S3Store], tmp_path: Path, length: int, more: int | None
) -> None:
    place = new_s3_store()
    data = bytes(number % 251 for number in range(length))
    key = put_blob(place, data)
    paced = PacedStore(place, Pace(1, clock=lambda: 0.0, sleep=lambda seconds: None))
    size = None if more is None else length + more
    for store in (paced, CachedStore(paced, BlobCache(tmp_path, 1 << 20), piece=STEP)):
        assert store.get(key, 0, size) == data
    assert (tmp_path / key).read_bytes() == data
