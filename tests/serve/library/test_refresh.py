"""What the hub has by then is what names mean after a refresh, at little cost."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from deltahub_serve.library import Library

from deltahub import Base, Delta, Hub, Mask, TaskModel
from deltahub.errors import NotFoundError
from tests.serve.conftest import Clock, Gate
from tests.serve.library.hubs import Counted, Loads, push, version


def test_a_push_and_a_moved_tag_are_seen_at_the_next_refresh(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    push(hub, base, mask, 1, tags=("prod",))
    held = library.get("sst2").result(60)
    assert version(library, "sst2:prod") == 1
    push(hub, base, mask, 2)
    assert version(library, "sst2") == 1
    assert library.refresh() == ["sst2"]
    assert version(library, "sst2") == 2
    hub.tag("sst2", 2, "prod")
    assert library.refresh() == ["sst2:prod"]
    hub.tag("sst2", 1, "prod")
    library.refresh()
    assert version(library, "sst2:prod") == 1
    assert held.version == 1


def test_a_removed_task_is_not_answered_after_the_refresh(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    version(library, "sst2")
    hub.remove("sst2")
    library.refresh()
    with pytest.raises(NotFoundError):
        version(library, "sst2")


def test_a_refresh_reads_nothing_of_tasks_that_have_not_changed(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    for task in ("a", "b", "c"):
        push(hub, base, mask, 1, task=task, tags=("prod",))
    clock, store = Clock(), Counted(hub.store)
    library = Library(Hub(store), loads, clock=clock)  # type: ignore[arg-type]
    for name in ("a", "b:prod", "c@1"):
        version(library, name)
    library.refresh()
    clock.now += 4.0  # what a coarse clock of a store could hide has come to light
    library.refresh()
    store.calls.clear()
    assert library.refresh() == []
    assert store.calls == {"list tasks": 3}
    hub.tag("b", 1, "prod")
    push(hub, base, mask, 2, task="a")
    assert library.refresh() == ["a"]
    library.close()


def test_a_tag_that_moves_within_the_tick_of_a_coarse_clock_is_seen(
    hub: Hub, base: Base, mask: Mask, loads: Loads, tmp_path: Path
) -> None:
    for seed in (1, 2):
        push(hub, base, mask, seed)
    tag = tmp_path / "hub/tasks/sst2/tag.prod.json"
    hub.tag("sst2", 1, "prod")
    os.utime(tag, (1e9, 1e9))
    clock = Clock()
    library = Library(hub, loads, clock=clock)
    assert version(library, "sst2:prod") == 1
    library.refresh()
    hub.tag("sst2", 2, "prod")
    os.utime(tag, (1e9, 1e9))
    clock.now += 4.0
    assert library.refresh() == ["sst2:prod"]
    library.close()


def test_removing_the_newest_version_goes_back_to_the_one_before(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    for seed in (1, 2):
        push(hub, base, mask, seed)
    assert version(library, "sst2") == version(library, "sst2@2") == 2
    hub.remove("sst2@2")
    assert sorted(library.refresh()) == ["sst2", "sst2@2"]
    assert version(library, "sst2") == 1
    with pytest.raises(NotFoundError):
        version(library, "sst2@2")


def test_a_load_ends_however_often_it_is_refreshed_meanwhile(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    push(hub, base, mask, 1)

    def load(delta: Delta) -> TaskModel:
        if loads.counts.total() < 5:
            library.refresh()
        return loads(delta)

    library = Library(hub, load)
    assert version(library, "sst2") == 1
    assert list(loads.counts.values()) == [1]
    library.close()


def test_a_task_that_is_removed_while_it_is_loaded_is_not_answered(
    hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    push(hub, base, mask, 1)

    def load(delta: Delta) -> TaskModel:
        hub.remove("sst2")
        library.refresh(["sst2"])
        return loads(delta)

    library = Library(hub, load, clock=Clock())
    for _ in range(2):
        with pytest.raises(NotFoundError):
            version(library, "sst2")
    library.close()


def test_a_name_that_nobody_asks_for_is_not_loaded_again_until_somebody_does(
    hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    push(hub, base, mask, 1)
    push(hub, base, mask, 1, task="kept")
    clock, store = Clock(), Counted(hub.store)
    library = Library(Hub(store), loads, clock=clock)  # type: ignore[arg-type]
    assert version(library, "sst2") == version(library, "kept") == 1
    push(hub, base, mask, 2)
    clock.now = 200.0
    assert library.refresh() == []
    assert loads.counts.total() == 2
    store.calls.clear()
    library.refresh()
    assert not [call for call in store.calls if not call.startswith("stat")]
    assert (version(library, "sst2"), version(library, "kept")) == (2, 1)
    assert loads.counts.total() == 3
    library.close()


def test_a_listing_that_was_under_way_does_not_undo_that_it_is_forgotten(
    library: Library, hub: Hub, base: Base, mask: Mask, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub, base, mask, 1, task="other")
    tasks = hub.tasks

    def slow() -> object:
        found = tasks()
        gate.through()
        return found

    monkeypatch.setattr(hub, "tasks", slow)
    listing = threading.Thread(target=library.listing.tasks)
    listing.start()
    assert gate.reached.wait(60)
    push(hub, base, mask, 1)
    forgetting = threading.Thread(target=library.listing.forget)
    forgetting.start()
    forgetting.join(0.05)  # it waits for the listing, or is through already
    gate.open()
    for thread in (listing, forgetting):
        thread.join(60)
    assert not library.listing.absent("sst2")
    assert version(library, "sst2") == 1


def test_only_a_refresh_of_all_names_counts_as_one(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    library._clock.now = 5.0  # type: ignore[attr-defined]
    library.refresh(["sst2"])
    assert library.refresh_age() == 5.0
    library.refresh()
    assert library.refresh_age() == 0.0
