"""Laws of S3 stores: the contract, and what only a place behind a line can do wrong."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.utils import parse_timestamp

from deltahub.errors import NotFoundError, StoreError, UsageError
from deltahub.stores import open_store
from deltahub.stores import s3 as s3_module
from deltahub.stores.s3 import S3Store
from deltahub.stores.s3_client import read_time
from tests.stores.conftest import BUCKET, QUICK
from tests.stores.faults import Fault
from tests.stores.s3_server import S3Server
from tests.stores.test_contract import LARGE, StoreContract, forked


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3_store: S3Store) -> S3Store:
        return s3_store


def test_its_url_is_the_same_place(s3_store: S3Store):
    s3_store.put("a/b", b"x")
    assert s3_store.url.startswith(f"s3://{BUCKET}/test/")
    for url in (s3_store.url, s3_store.url + "/", s3_store.url.replace("s3://", "s3a://")):
        assert open_store(url).get("a/b") == b"x"


def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(s3_store: S3Store):
    inner = S3Store(BUCKET, f"{s3_store.prefix}in", QUICK)
    S3Store(BUCKET, f"{s3_store.prefix}inner", QUICK).put("a", b"other")
    inner.put("b", b"mine")
    assert [entry.key for entry in inner.list()] == ["b"]


def test_what_programs_show_as_folders_are_no_objects(s3_store: S3Store):
    for key in ("", "a/"):
        s3_store._call("", lambda client, key=key: client.put_object(Bucket=BUCKET, Key=s3_store.prefix + key))
    assert list(s3_store.list()) == []


def test_of_two_threads_exactly_one_creates(new_s3_store: Callable[..., S3Store]):
    """Each with its own connections, over many rounds."""
    rounds, barrier = 40, threading.Barrier(2)

    def create(store: S3Store) -> list[bool]:
        won = []
        for turn in range(rounds):
            barrier.wait()
            won.append(store.put_new(f"race/{turn}", store.url.encode()))
        return won

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(create, (new_s3_store(own=True), new_s3_store(own=True)))
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * rounds


def test_many_objects_are_listed_across_pages(s3: S3Server, s3_store: S3Store):
    keys = {f"many/{number:04d}" for number in range(1100)}
    s3.fill(BUCKET, (s3_store.prefix + key for key in keys))
    assert {entry.key for entry in s3_store.list("many")} == keys


def test_a_listing_is_never_remembered(new_s3_store: Callable[..., S3Store]):
    mine, other = new_s3_store(own=True), new_s3_store()
    assert list(mine.list()) == []
    other.put("a", b"x")
    assert [entry.key for entry in mine.list()] == ["a"]
    other.delete("a")
    assert mine.stat("a") is None


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("size", [None, len(LARGE), len(LARGE) + 1])
def test_a_body_that_breaks_off_is_continued_where_it_broke(s3: S3Server, s3_store: S3Store, start, size):
    s3_store.put("a", LARGE)
    s3.faults.append(Fault("cut", "GET", "/a", times=2))
    s3.requests.clear()
    assert s3_store.get("a", start, size) == LARGE[start:]
    ranges = [headers.get("range", "bytes=0-") for _, _, headers in s3.requests]
    assert len({first.split("-")[0] for first in ranges}) == 3, ranges


def test_a_body_that_always_breaks_off_makes_way_and_comes_through(s3: S3Server, s3_store: S3Store):
    s3_store.put("a", LARGE)
    s3.faults.append(Fault("cut", "GET", "/a", times=QUICK.attempts + 5))
    assert s3_store.get("a") == LARGE


def test_an_object_replaced_while_it_is_read_is_read_anew(s3: S3Server, s3_store: S3Store, monkeypatch):
    """Two halves of two states would be an object that nobody wrote."""
    s3_store.put("a", LARGE)
    s3.faults.append(Fault("cut", "GET", "/a"))
    newer = LARGE[::-1]

    def meanwhile(_: float) -> None:
        monkeypatch.undo()
        s3_store.put("a", newer)

    monkeypatch.setattr(s3_module.time, "sleep", meanwhile)
    assert s3_store.get("a") == newer
    assert len([headers for method, _, headers in s3.requests if method == "GET" and "if_match" in headers]) == 1


@pytest.mark.parametrize("kind", ["503 SlowDown", "500 InternalError", "429 TooManyRequests", "drop"])
def test_what_may_pass_is_tried_again(s3: S3Server, s3_store: S3Store, kind):
    s3_store.put_new("b", b"x")
    calls: list[Callable[[], object]] = [
        lambda: s3_store.put("a", b"x"), lambda: s3_store.put_new("c", b"x"), lambda: s3_store.get("a"),
        lambda: s3_store.stat("a"), lambda: list(s3_store.list()), lambda: s3_store.delete("b"),
        lambda: list(s3_store.unfinished()),
    ]  # fmt: skip
    for call in calls:
        s3.faults[:] = [Fault(kind, times=QUICK.attempts - 1)]
        assert call() is not False
        assert s3.faults[0].met == QUICK.attempts - 1
    assert {entry.key for entry in s3_store.list()} == {"a", "c"}


def test_what_does_not_pass_is_one_error_that_says_what_to_do(s3: S3Server, s3_store: S3Store):
    s3.faults.append(Fault("503 SlowDown", times=1000))
    with pytest.raises(StoreError, match=r"busy or broken.*SlowDown.*again later"):
        s3_store.put("a", b"x")
    assert s3.faults[0].met == QUICK.attempts


def test_no_permission_is_said_at_once(s3: S3Server, s3_store: S3Store):
    s3_store.put_new("a", b"x")
    calls: list[Callable[[], object]] = [
        lambda: s3_store.put("a", b"x"), lambda: s3_store.put_new("c", b"x"), lambda: s3_store.get("a"),
        lambda: s3_store.stat("a"), lambda: list(s3_store.list()), lambda: s3_store.delete("a"),
        lambda: list(s3_store.unfinished()),
    ]  # fmt: skip
    for call in calls:
        s3.faults[:] = [Fault("403 AccessDenied", times=1000)]
        with pytest.raises(StoreError, match=r"denied.*check the credentials"):
            call()
        assert s3.faults[0].met == 1


def test_no_bucket_is_said_by_every_method(s3: S3Server):
    for call in (
        lambda store: store.put("a", b"x"), lambda store: store.put_new("c", b"x"), lambda store: store.get("a"),
        lambda store: store.stat("a"), lambda store: list(store.list()), lambda store: list(store.unfinished()),
    ):  # fmt: skip
        with pytest.raises(StoreError, match="no bucket none-such"):
            call(S3Store("none-such", "x", QUICK))


@pytest.mark.parametrize("endpoint", ["refuses", "never answers"])
def test_a_dead_endpoint_is_an_error_within_the_timeout(monkeypatch, endpoint):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if endpoint == "never answers":
            listening.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
        patience = s3_module.Patience(attempts=2, wait=0.01, connect=0.2, read=0.2)
        with pytest.raises(StoreError, match=r"cannot reach s3://bucket/hub/a.*AWS_ENDPOINT_URL"):
            S3Store("bucket", "hub", patience).get("a")


def test_no_credentials_is_said_at_once(s3: S3Server, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        S3Store(BUCKET, "x", QUICK).stat("a")


def test_an_answer_that_got_lost_is_not_taken_for_another_writer(s3: S3Server, s3_store: S3Store):
    s3_store.put_new("first", b"")
    s3.faults.append(Fault("drop", "PUT", "/a"))
    assert s3_store.put_new("a", b"x") is True
    assert s3_store.put_new("a", b"x") is False


def test_a_server_without_conditional_writes_is_refused_for_pushes(s3: S3Server, s3_store: S3Store):
    s3_store.put("a", b"x")
    s3.faults.append(Fault("unconditional", "PUT", times=1000))
    with pytest.raises(StoreError, match="no conditional writes"):
        s3_store.put_new("a", b"y")
    assert s3_store.get("a") == b"x"
    assert [entry.key for entry in s3_store.list()] == ["a"]
    assert list(s3_store.unfinished()) == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(s3: S3Server, s3_store: S3Store, status):
    elsewhere = S3Server()
    s3.faults.append(Fault(f"redirect {status} {elsewhere.url}/{BUCKET}/a", times=1000))
    for call in (lambda: s3_store.get("a"), lambda: s3_store.put("a", b"x"), lambda: list(s3_store.list())):
        with pytest.raises(StoreError, match=r"redirected to .* not followed"):
            call()
    elsewhere.stop()
    assert elsewhere.requests == []


class TestLargeObjects:
    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        monkeypatch.setattr(s3_module, "_MULTIPART", 6 << 20)
        monkeypatch.setattr(s3_module, "_PART", 5 << 20)

    data = os.urandom(1 << 20) * 11

    def test_they_travel_in_parts(self, s3_store: S3Store):
        s3_store.put("a", memoryview(self.data))
        assert s3_store.get("a") == self.data
        assert list(s3_store.unfinished()) == []

    def test_one_that_fails_is_not_there_and_leaves_nothing(self, s3: S3Server, s3_store: S3Store):
        s3_store.put("a", b"old")
        s3.faults.append(Fault("403 AccessDenied", "PUT", "partNumber=2"))
        with pytest.raises(StoreError, match="denied"):
            s3_store.put("a", self.data)
        assert s3_store.get("a") == b"old"
        assert list(s3_store.unfinished()) == []

    def test_lost_answers_and_busy_servers_do_no_harm(self, s3: S3Server, s3_store: S3Store):
        s3.faults += [Fault("503 SlowDown", "PUT", "partNumber=1", times=2), Fault("drop", "POST", "uploadId=")]
        s3.faults.append(Fault("404 NoSuchUpload", "POST", "uploadId="))
        s3_store.put("a", self.data)
        assert [fault.met for fault in s3.faults] == [2, 1, 1]
        assert s3_store.get("a") == self.data

    def test_one_whose_upload_is_gone_is_not_taken_for_done(self, s3: S3Server, s3_store: S3Store):
        s3_store.put("a", self.data[::-1])
        s3.faults.append(Fault("404 NoSuchUpload", "POST", "uploadId="))
        with pytest.raises(StoreError, match="aborted"):
            s3_store.put("a", self.data)
        assert s3_store.get("a") == self.data[::-1]

    def test_what_a_writer_that_died_left_can_be_found_and_deleted(self, s3: S3Server, s3_store: S3Store, new_s3_store):
        s3.faults.append(Fault("403 AccessDenied", "POST", "uploadId="))
        s3.faults.append(Fault("403 AccessDenied", "DELETE", "uploadId="))
        with pytest.raises(StoreError, match="denied"):
            s3_store.put("blobs/ab/abc", self.data)
        assert list(s3_store.list()) == []
        [left] = s3_store.unfinished()
        assert left.size == len(self.data)
        assert left.modified > 0
        new_s3_store().delete(left.key)
        new_s3_store().delete(left.key)
        assert list(s3_store.unfinished()) == []


def test_a_fork_has_connections_of_its_own(s3_store: S3Store):
    s3_store.put("a", b"x")

    def child() -> None:
        assert s3_store.get("a") == b"x"
        s3_store.put("b", b"y")

    assert forked(child) == 0
    assert s3_store.get("b") == b"y"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///a", "s3://b/a/../c", "s3://b c", "s3://b/ä", "s3://b/a\nb", "s3://x@b"]
)
def test_urls_that_name_no_bucket_are_refused(url):
    with pytest.raises(UsageError):
        open_store(url)


def test_nothing_is_there_where_nothing_was_put(s3_store: S3Store):
    with pytest.raises(NotFoundError, match="has no a/b"):
        s3_store.get("a/b", 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T20:00:00.000Z",
        "2026-11-21T20:00:00Z",
        "2026-11-21T20:00:00+01:00",
        "2026-11-21T20:00:00",
        "Sat, 21 Nov 2026 20:00:00 GMT",
        "1795291200",
    ],
)
def test_times_are_read_as_botocore_reads_them(text: str):
    assert read_time(text).timestamp() == parse_timestamp(text).timestamp()


@pytest.mark.parametrize("body", [b"", b"<html>sign in</html>", b"<ListBucketResult/>"])
def test_a_page_that_is_no_answer_of_s3_is_no_empty_listing(s3: S3Server, s3_store: S3Store, body):
    """A collector that took it for one would delete every blob."""
    s3_store.put("tasks/a", b"x")
    s3.faults[:] = [Fault("page " + body.decode(), times=1000)]
    calls: list[Callable[[], object]] = [
        lambda: list(s3_store.list("tasks")), lambda: s3_store.stat("tasks/a"), lambda: s3_store.get("tasks/a"),
        lambda: s3_store.put("a", b"x"), lambda: s3_store.put_new("b", b"x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreError, match="does not answer as S3 does"):
            call()


def test_an_endpoint_that_is_none_is_said_in_one_line(s3: S3Server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL"):
        S3Store(BUCKET, "x", QUICK).stat("a")
