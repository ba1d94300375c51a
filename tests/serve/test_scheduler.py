"""Laws of the queues, under a clock that the test moves."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from deltahub_serve.scheduler import Limits, Mixing, Overloaded, Request, Scheduler
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduler(**limits: float) -> tuple[Scheduler[str], Clock]:
    clock = Clock()
    return Scheduler(Limits(**limits), clock), clock  # type: ignore[arg-type]


def submit(queues: Scheduler[str], key: str, tokens: int = 10, **more: float) -> Request[str]:
    request = Request(key, key, tokens, **more)
    queues.submit(request)
    return request


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.sampled_from("abcd"), st.integers(1, 300), st.sampled_from([0.05, 1.0, math.inf])
        ),
        st.tuples(st.just("pass"), st.floats(0, 0.2)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
    ),
    max_size=80,
)


@given(EVENTS, st.sampled_from(get_args(Mixing)), st.sets(st.sampled_from("abcd")))
def test_every_request_leaves_exactly_once_and_every_batch_keeps_the_rules(events, mixing, mixable) -> None:
    """One task within the limits, or several that all can be mixed."""
    queues, clock = scheduler(batch_rows=4, batch_tokens=400, patience=0.1, mixing=mixing)
    queues.cheaper = lambda requests, _: len(requests) > 2
    sent: list[Request[str]] = []
    left: list[Request[str]] = []
    resident = None

    def run() -> bool:
        nonlocal resident
        batch = queues.next_batch(resident)
        left.extend(batch.expired)
        assert all(request.deadline <= clock.now for request in batch.expired)
        if batch.key is None:
            return False
        keys = {request.key for request in batch.requests}
        resident = batch.key if len(keys) == 1 else None
        left.extend(batch.requests)
        assert batch.requests[0].key == batch.key
        assert len(keys) == 1 or (mixing != "never" and keys <= mixable)
        assert len(keys) == 1 or mixing == "always" or len(batch.requests) > 2
        assert len(batch.requests) <= 4
        assert len(batch.requests) * max(r.tokens for r in batch.requests) <= max(400, batch.requests[0].tokens)
        return True

    for event, *rest in events:
        if event == "submit":
            key, tokens, life = rest
            sent.append(submit(queues, key, tokens, deadline=clock.now + life, mixable=key in mixable))
        elif event == "cancel" and rest[0] < len(sent):
            if queues.cancel(request := sent[rest[0]]):
                left.append(request)
        elif event == "pass":
            clock.now += rest[0]
            run()
    while run():
        pass
    assert len(queues) == 0
    assert sorted(map(id, left)) == sorted(map(id, sent))
    assert not queues._queues
    assert not queues._per_task


@given(st.integers(1, 6), st.integers(2, 20), st.floats(0.001, 0.05))
def test_no_task_waits_long_under_the_load_of_the_others(others: int, rows: int, pass_seconds: float) -> None:
    """Others keep their queues full for ever; a lone request still goes within its patience and a turn of each."""
    queues, clock = scheduler(batch_rows=rows, patience=0.05, queued=100_000, queued_per_task=100_000)
    for _ in range(5 * rows):
        for other in range(others):
            submit(queues, f"busy{other}")
    lonely = submit(queues, "lonely")
    passes = 0
    while lonely.waiting:
        batch = queues.next_batch()
        for _ in batch.requests:
            submit(queues, str(batch.key))
        clock.now += pass_seconds
        passes += 1
        assert passes < 10_000
    backlog = 5 * others  # passes of those that had come before it
    assert clock.now <= 0.05 + pass_seconds * (backlog + others + 2)


def test_the_fullest_queue_goes_first_and_the_resident_one_among_equals() -> None:
    queues, _ = scheduler()
    for key in "abbc":
        submit(queues, key)
    assert queues.next_batch().key == "b"
    assert queues.next_batch("c").key == "c"
    assert queues.next_batch("c").key == "a"
    assert queues.next_batch().key is None


def test_the_oldest_goes_first_once_its_patience_is_over() -> None:
    queues, clock = scheduler(patience=0.1)
    submit(queues, "old")
    clock.now = 0.1
    for _ in range(5):
        submit(queues, "full")
    assert queues.next_batch().key == "old"


def test_others_join_the_oldest_by_their_length_whatever_their_task() -> None:
    queues, _ = scheduler(batch_rows=3, batch_tokens=60, mixing="always")
    for key, tokens in (("a", 20), ("b", 40), ("c", 19), ("d", 21)):
        submit(queues, key, tokens, mixable=True)
    assert [request.key for request in queues.next_batch("a").requests] == ["b"], "most tokens first, and no other fits"
    assert [request.key for request in queues.next_batch("b").requests] == ["d", "a"], "a third would be too wide"
    assert [request.key for request in queues.next_batch().requests] == ["c"]


def test_whether_a_mixed_pass_is_cheaper_is_asked_with_what_is_in_place() -> None:
    queues, _ = scheduler()
    asked: list[tuple[list[str], str | None]] = []
    queues.cheaper = lambda requests, resident: bool(
        asked.append((sorted(request.key for request in requests), resident))
    )
    for key in "ab":
        submit(queues, key, mixable=True)
    submit(queues, "c")
    assert [request.key for request in queues.next_batch("b").requests] == ["b"]
    assert asked == [(["a", "b"], "b")]
    assert len(queues.next_batch("b").requests) == 1
    assert len(asked) == 1, "nothing is left that could join"


def test_requests_of_like_length_share_a_pass_and_the_oldest_is_in_it() -> None:
    queues, _ = scheduler(batch_tokens=240, batch_rows=8)
    lengths = [100, 10, 110, 12, 105]
    sent = [submit(queues, "a", tokens) for tokens in lengths]
    assert [r.tokens for r in queues.next_batch().requests] == [100, 105]
    assert sorted(r.tokens for r in queues.next_batch().requests) == [10, 12]
    assert [r.tokens for r in queues.next_batch().requests] == [110]
    assert not any(request.waiting for request in sent)


def test_one_request_longer_than_a_batch_goes_alone() -> None:
    queues, _ = scheduler(batch_tokens=50)
    submit(queues, "a", 500)
    submit(queues, "a", 5)
    assert [r.tokens for r in queues.next_batch().requests] == [500]
    assert [r.tokens for r in queues.next_batch().requests] == [5]


def test_overload_is_refused_by_task_and_in_all_with_an_advice() -> None:
    queues, _ = scheduler(queued=5, queued_per_task=3)
    queues.took(10, 20.0)
    for _ in range(3):
        submit(queues, "a")
    with pytest.raises(Overloaded, match="no more than 3 requests may wait for a") as refused:
        submit(queues, "a")
    assert refused.value.retry_after == pytest.approx(3 * 2.0)
    submit(queues, "b")
    submit(queues, "c")
    with pytest.raises(Overloaded, match="no more than 5 requests may wait in all"):
        submit(queues, "d")
    assert len(queues) == 5


def test_the_advice_is_never_less_than_a_second_nor_more_than_half_a_minute() -> None:
    queues, _ = scheduler()
    assert queues.drain(4000) == 1.0  # nothing is known yet
    queues.took(1, 0.01)
    assert [queues.drain(requests) for requests in (1, 200, 10_000)] == [1.0, pytest.approx(2.0), 30.0]


def test_a_request_on_its_way_cannot_be_cancelled() -> None:
    queues, _ = scheduler()
    request = submit(queues, "a")
    queues.next_batch()
    assert not queues.cancel(request)


def test_all_requests_that_come_together_are_taken_or_none() -> None:
    queues, _ = scheduler(queued=5)
    submit(queues, "a")
    with pytest.raises(Overloaded):
        queues.submit(*(Request("a", "a", 10) for _ in range(5)))
    assert len(queues) == 1
    queues.submit(*(Request("a", "a", 10) for _ in range(4)))
    assert len(queues) == queues.waiting("a") == 5
