"""A limit on the rate holds over all threads and hubs, within a blob too, and changes no byte."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltahub import records
from deltahub.errors import UsageError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from deltahub.stores.cached import wrapped
from deltahub.stores.paced import Pace, PacedStore, bytes_of
from deltahub.syncing import sync
from tests.stores.test_contract import StoreContract
from tests.stores.watched import RemoteStore, put_blob
from tests.test_hub import dump, tiny


class Clock:
    """Time that passes by sleeping; ``slept`` has every wait."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, rate: float | None, at_once: int | None = None) -> Pace:
        return Pace(rate, at_once, clock=lambda: self.now, sleep=self.sleep)


class TestPacedStore(StoreContract):
    @pytest.fixture
    def store(self):
        pace = Pace(1e6, 2, clock=lambda: 0.0, sleep=lambda seconds: None)
        return wrapped(RemoteStore(MemoryStore()), None, pace)


def test_reading_and_writing_take_their_time_together():
    clock = Clock()
    pace = clock.pace(1e6)
    one, two = PacedStore(MemoryStore(), pace), PacedStore(MemoryStore(), pace)
    key = put_blob(one, bytes(3_000_000))
    assert one.get(key) == bytes(3_000_000)
    two.put_new("a", bytes(1_000_000))
    assert two.get("a", 10, 500_000) == bytes(500_000)
    assert clock.now == pytest.approx(7.5)


def test_within_a_blob_no_moment_is_faster_than_the_rate():
    clock = Clock()
    moments: list[float] = []
    remote = RemoteStore(MemoryStore(), lambda count: moments.append(clock.now))
    key = put_blob(remote.inner, bytes(10_000_000))
    PacedStore(remote, clock.pace(4e6)).get(key, 0, 10_000_001)
    assert moments == pytest.approx([0.25 * number for number in range(10)] + [2.5])
    assert max(clock.slept) == pytest.approx(0.25)


def test_threads_share_the_rate():
    waits: list[float] = []
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            waits.append(seconds)

    pace = Pace(1000, clock=lambda: 0.0, sleep=sleep)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: pace.take(100), range(80)))
    assert sorted(waits) == pytest.approx([0.1 * number for number in range(1, 81)])


def test_time_without_use_gives_no_credit():
    clock = Clock()
    pace = clock.pace(100)
    clock.now = 1000.0
    pace.take(200)
    assert clock.now == pytest.approx(1002.0)


@pytest.mark.parametrize(
    ("rate", "step"), [(1, 65536), (1e6, 250_000), (1e9, 8 << 20), (float("inf"), 8 << 20), (None, 8 << 20)]
)
def test_steps_are_a_quarter_of_a_second_within_reason(rate, step):
    assert Pace(rate).step == step


@pytest.mark.parametrize(("given", "expected"), [(None, 4), (1, 1), (30, 30)])
def test_requests_at_once_are_those_of_the_pace_or_of_the_store(given, expected):
    assert wrapped(RemoteStore(MemoryStore()), None, Pace(None, given)).at_once == expected


def test_one_pace_holds_for_both_hubs_of_a_sync():
    clock = Clock()
    pace = clock.pace(1000)
    places = [MemoryStore("source"), MemoryStore("target")]
    for place in places:
        place.put("hub.json", records.HUB)
    Hub(places[0]).push(tiny("a", 1))
    source, target = (Hub(PacedStore(place, pace)) for place in places)
    report = sync(source, target)
    assert dump(Hub(places[1]).pull("a")) == dump(tiny("a", 1))
    assert clock.now > 2 * report.bytes / 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10MB", 10**7), ("1.5 kB", 1500), ("20GB", 2 * 10**10), ("7", 7), ("3B", 3), ("2m", 2 * 10**6), ("1tb", 10**12)],
)
def test_sizes_as_people_write_them(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "-1MB", "1e9", "10 PB", "1MiB", "MB", "1,5MB", "9" * 40, "nan", "1\n2", "10\u212aB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="10MB"):
        bytes_of(text)


@pytest.mark.parametrize("options", [{"bytes_per_second": 0}, {"bytes_per_second": float("nan")}, {"at_once": 0}])
def test_a_limit_of_nothing_is_refused(options):
    with pytest.raises(UsageError):
        Pace(**options)
