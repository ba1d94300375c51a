"""Servers that list what they should not."""

from __future__ import annotations

from datetime import UTC, datetime

from deltahub.hub import Hub
from deltahub.stores.s3 import S3Store
from tests.attacks.attack import material
from tests.stores.conftest import BUCKET, new_s3_store, s3, s3_endpoint, s3_store, s3_system  # noqa: F401
from tests.stores.s3_server import S3Server

HOSTILE = ["../../outside", "/etc/passwd", "tasks/../../x", "tasks/a b/v00000001.json", "pushing/a\tb", "blobs//x"]


def test_a_listing_of_hostile_keys_is_passed_over(s3: S3Server, s3_store: S3Store):  # noqa: F811
    for name, data in material().hub.items():
        s3_store.put(name, data)
    s3.fill(BUCKET, [s3_store.prefix + key for key in HOSTILE])
    assert {entry.key for entry in s3_store.list()} == set(material().hub)
    hub = Hub(s3_store)
    assert hub.verify().problems == ()
    assert hub.gc(grace_seconds=0).deleted == ()


def test_a_listing_of_another_prefix_is_passed_over(monkeypatch):
    """Some servers do not look at the prefix, and one that means harm would not either."""
    store = S3Store("bucket", "mine")
    found = [{"Key": key, "Size": 1, "LastModified": datetime.now(UTC)} for key in ("mine/a", "theirs/a", "a", "mine")]
    monkeypatch.setattr(store, "_call", lambda *_: {"Name": "bucket", "IsTruncated": False, "Contents": found})
    assert [entry.key for entry in store.list()] == ["a"]
