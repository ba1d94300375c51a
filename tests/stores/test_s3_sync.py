"""What moves between a hub on S3 and others: few requests, no byte twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deltahub.errors import StoreError
from deltahub.hub import Hub
from deltahub.stores.s3 import S3Store
from deltahub.syncing import sync
from tests.hubs_to_sync import content
from tests.stores.conftest import BUCKET
from tests.stores.faults import Fault
from tests.stores.s3_server import S3Server
from tests.test_hub import dump, tiny


@pytest.fixture
def new_hub(new_s3_store: Callable[..., S3Store]) -> Callable[[], Hub]:
    Hub.open(new_s3_store().url)
    return lambda: Hub(new_s3_store())


@pytest.fixture
def local(tmp_path) -> Hub:
    hub = Hub.open(tmp_path / "hub")
    for task, seed in (("a", 0), ("a", 1), ("b", 1), ("c", 2)):
        hub.push(tiny(task, seed), ["prod"])
    return hub


def sent(s3: S3Server, method: str, part: str = "") -> int:
    return sum(1 for one, path, _ in s3.requests if one == method and part in path)


def test_there_and_back(local: Hub, new_hub: Callable[[], Hub], tmp_path):
    report = sync(local, new_hub())
    assert (len(report.copied), report.failed) == (4, ())
    assert content(new_hub()) == content(local)
    assert new_hub().verify().problems == ()
    again = sync(local, new_hub())
    assert (again.copied, again.blobs) == ((), 0)
    back = Hub.open(tmp_path / "back")
    sync(new_hub(), back)
    assert content(back) == content(local)
    assert back.tags("a") == {"prod": 2}


def test_a_second_push_moves_no_blob(s3: S3Server, new_hub: Callable[[], Hub]):
    new_hub().push(tiny("a", 1), ["prod"])
    s3.requests.clear()
    assert new_hub().push(tiny("a", 1), ["prod"]).new is False
    assert sent(s3, "GET", "/blobs/") == sent(s3, "PUT", "/blobs/") == 0
    hub = new_hub()
    s3.requests.clear()
    assert hub.push(tiny("other", 1)).number == 1
    assert sent(s3, "GET", "/blobs/") == sent(s3, "PUT", "/blobs/") == 0


def test_a_small_push_makes_few_requests(s3: S3Server, new_hub: Callable[[], Hub]):
    hub = new_hub()
    hub.push(tiny("a", 1))  # the server has been asked for its conditions, mask and base are there
    s3.requests.clear()
    hub.push(tiny("b", 2), ["prod"])
    requests = [(method, path.partition("?")[0]) for method, path, _ in s3.requests]
    assert len(requests) <= 13, requests
    assert dump(hub.pull("b:prod")) == dump(tiny("b", 2))


def test_damage_of_the_same_size_is_healed_where_the_server_tells_the_md5(s3: S3Server, new_hub: Callable[[], Hub]):
    hub = new_hub()
    hub.push(tiny("a", 1))
    blob = next(hub.store.list("blobs")).key
    s3.overwrite(BUCKET, hub.store.prefix + blob, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    hub.push(tiny("b", 1))
    assert hub.verify().problems == ()


def test_a_sync_that_is_refused_midway_goes_on(s3: S3Server, local: Hub, new_hub: Callable[[], Hub]):
    s3.faults.append(Fault("403 AccessDenied", "PUT", "/tasks/b/", times=1000))
    with pytest.raises(StoreError, match="denied"):
        sync(local, new_hub())
    s3.faults.clear()
    assert new_hub().verify().problems == ()
    s3.requests.clear()
    sync(local, new_hub())
    assert sent(s3, "PUT", "/blobs/") == 0
    assert content(new_hub()) == content(local)


def test_two_hubs_on_s3_tell_equal_lengths_apart(local: Hub, new_hub: Callable[[], Hub], tmp_path):
    """Their listings have the MD5 of records: content that differs is seen without a look at it."""
    ours, theirs = new_hub(), Hub(S3Store(BUCKET, f"{new_hub().store.prefix.rstrip('/')}-two"))
    Hub.open(theirs.store.url)
    ours.push(tiny("a", 1))
    length = ours.store.stat("tasks/a/v00000001.json").size
    for seed in range(3, 99, 2):
        probe = Hub.open(f"memory://probe-{seed}")
        probe.push(tiny("a", seed))
        if probe.store.stat("tasks/a/v00000001.json").size == length:
            theirs.push(tiny("a", seed))
            break
    assert [(copy.source, copy.target) for copy in sync(ours, theirs).copied] == [("a@1", "a@2")]
