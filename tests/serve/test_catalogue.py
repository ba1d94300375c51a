"""Cards of all that can be asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltahub_serve import catalogue as catalogue_module
from deltahub_serve.catalogue import Catalogue
from deltahub_serve.listing import HubWatch, Listing
from deltahub_serve.questions import Question, Refused, TaskCard

from deltahub import Delta, Hub
from deltahub.errors import NotFoundError, StoreError, UsageError
from tests.serve.conftest import KINDS, Clock, Gate, MakeWorker

BASE = TaskCard("base", "embeddings", (), None, (), {}, 0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def catalogue(hub: Hub, clock: Clock) -> Catalogue:
    return Catalogue(Listing(HubWatch(hub, clock), clock, 2.0), BASE, list, lambda _: None, clock)


def test_the_base_then_every_task_by_name(hub: Hub, clock: Clock) -> None:
    cards = {card.name: card for card in catalogue(hub, clock).cards()}
    assert list(cards) == ["base", *sorted([*KINDS, "pairs"])]
    assert {name: cards[name].kind for name in KINDS} == KINDS
    topic = cards["topic"]
    assert (topic.labels, topic.parent, topic.versions, topic.tags) == (
        ("red", "green", "blue"), "base", (1, 2), {"prod": None},
    )  # fmt: skip
    assert topic.created > 1_700_000_000
    assert [card.name for card in cards.values() if card.pair] == ["pairs"]


def test_one_card_has_its_tags_and_the_kind_of_the_version_that_was_asked_for(
    hub: Hub, clock: Clock, make_task: Callable[..., Delta]
) -> None:
    hub.push(make_task("topic", "regression", 1))
    found = catalogue(hub, clock)
    kinds = [found.card(name).kind for name in ("topic", "topic@2", "topic:prod")]
    assert kinds == ["regression", "text-classification", "text-classification"]
    assert found.card("topic").tags == {"prod": 1}
    assert found.card("base") == BASE
    for name, error in (("topic@9", NotFoundError), ("topic:x", NotFoundError), ("../x", UsageError)):
        with pytest.raises(error):
            found.card(name)
    with pytest.raises(NotFoundError, match="did you mean topic"):
        found.card("topik")


def test_a_record_is_read_once(hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    found, read, version = catalogue(hub, clock), [], hub.version

    def counted(reference: str) -> Any:
        read.append(reference)
        return version(reference)

    monkeypatch.setattr(hub, "version", counted)
    first = found.cards()
    clock.now += 10
    assert found.cards() == first
    assert sorted(read) == sorted(f"{card.name}@{card.versions[-1]}" for card in first[1:])


def test_a_push_and_a_removal_are_seen_a_second_later(hub: Hub, clock: Clock, make_task: Callable[..., Delta]) -> None:
    found = catalogue(hub, clock)
    found.cards()
    hub.push(make_task("fresh"))
    hub.remove("topic", force=True)
    names = {card.name for card in found.cards()}
    assert ("fresh" in names, "topic" in names) == (False, True)
    clock.now += 1.0
    names = {card.name for card in found.cards()}
    assert ("fresh" in names, "topic" in names) == (True, False)


def test_a_record_that_is_damaged_is_told_and_read_again_later(hub: Hub, clock: Clock, hub_folder: Path) -> None:
    path = hub_folder / "tasks/topic/v00000002.json"
    whole = path.read_bytes()
    path.write_bytes(b"{}")
    found = catalogue(hub, clock)

    def trouble() -> str | None:
        return next(card.trouble for card in found.cards() if card.name == "topic")

    assert trouble() is not None
    path.write_bytes(whole)
    clock.now += 60.0
    assert trouble() is None


def test_when_the_hub_is_gone_what_was_known_is_told(hub: Hub, clock: Clock, hub_folder: Path) -> None:
    found = catalogue(hub, clock)
    before = found.cards()
    hub_folder.rename(hub_folder.with_name("away"))
    clock.now += 10
    assert found.cards() == before
    assert found.card("topic").versions == (1, 2)
    with pytest.raises(StoreError):
        found.card("lost")


def test_a_hub_that_hangs_stops_no_question(
    make_worker: MakeWorker, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(live={"timeout": 20.0})
    asyncio.run(worker.ask(Question("topic", ("w1",))))
    tasks = worker._parts.hub.tasks
    monkeypatch.setattr(worker._parts.hub, "tasks", lambda: (gate.through(), tasks())[1])

    async def both() -> None:
        cards = asyncio.create_task(worker.cards())
        await asyncio.to_thread(gate.reached.wait, 60)
        assert (await worker.ask(Question("topic", ("w1",)))).version == 2
        assert not cards.done()
        gate.open()
        assert (await cards)[0].name == "base"

    asyncio.run(both())


def test_ten_thousand_tasks_do_not_hold_the_loop(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards are made on another thread than the one that the loop runs in."""
    worker = make_worker()
    threads, version = set(), worker._parts.hub.version

    def told(reference: str) -> Any:
        threads.add(threading.current_thread())
        return version(reference)

    monkeypatch.setattr(worker._parts.hub, "version", told)
    asyncio.run(worker.cards())
    asyncio.run(worker.card("topic"))
    assert threads
    assert threading.main_thread() not in threads


def test_a_card_that_there_is_not_is_refused_as_a_question_is(make_worker: MakeWorker) -> None:
    worker = make_worker()
    for name in ("topik", "../x", "topic@9"):
        with pytest.raises(Refused) as caught:
            asyncio.run(worker.card(name))
        assert caught.value.refusal.reason == "unknown"


def test_the_card_of_a_tag_is_told_without_the_hub_where_the_tag_was_asked_for(
    make_worker: MakeWorker, hub_folder: Path
) -> None:
    worker = make_worker()
    asyncio.run(worker.ask(Question("topic:prod", ("w1",))))
    before = asyncio.run(worker.card("topic:prod"))
    asyncio.run(worker.cards())
    hub_folder.rename(hub_folder.with_name("away"))
    assert asyncio.run(worker.card("topic:prod")) == before
    for name in ("words:prod", "topic:nobody", "topic@9", "lost"):
        with pytest.raises(Refused) as caught:
            asyncio.run(worker.card(name))
        assert caught.value.refusal.reason == "unavailable", name


def test_a_hub_whose_tags_cannot_be_read_is_in_trouble(hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalogue(hub, clock)
    found.cards()

    def fails(task: str) -> Any:
        raise StoreError("connection lost")

    monkeypatch.setattr(hub, "tags", fails)
    assert found.card("topic").versions == (1, 2)
    assert found._listing.watch.trouble() == "connection lost"


def test_a_hub_of_more_tasks_than_are_remembered_otherwise_is_remembered(
    hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "_MOST_FACTS", 2)
    found = catalogue(hub, clock)
    first = found.cards()
    clock.now += 10
    monkeypatch.setattr(hub, "version", None)
    assert found.cards() == first
