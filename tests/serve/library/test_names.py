"""From names to loaded tasks, over a real hub in a folder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltahub_serve.futures import BusyError
from deltahub_serve.library import Library
from deltahub_serve.settings import LibrarySettings

from deltahub import Base, Delta, Hub, Mask, TaskModel
from deltahub.errors import MismatchError, NotFoundError, UsageError
from tests.serve.conftest import Clock, Gate
from tests.serve.library.hubs import Counted, Loads, push, version
from tests.tasks import random_task


def test_a_name_a_number_and_a_tag(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1, tags=("prod",))
    push(hub, base, mask, 2)
    assert [version(library, name) for name in ("sst2", "sst2@1", "sst2:prod")] == [2, 1, 1]
    with pytest.raises(NotFoundError, match="sst3"):
        version(library, "sst3")
    with pytest.raises(UsageError, match="task name"):
        version(library, "../x")


def test_all_who_ask_at_once_wait_for_one_load(
    library: Library, hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    push(hub, base, mask, 1)
    start = threading.Barrier(8)

    def ask(_: int) -> int:
        start.wait()
        return version(library, "sst2")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {1}
    assert list(loads.counts.values()) == [1]


def test_one_who_gives_up_does_not_take_the_load_from_the_others(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    push(hub, base, mask, 1)
    library.get("sst2").cancel()
    assert version(library, "sst2") == 1


def test_while_a_task_is_loading_others_answer(hub: Hub, base: Base, mask: Mask, loads: Loads, gate: Gate) -> None:
    for task in ("quick", "slow"):
        push(hub, base, mask, 1, task=task)

    def load(delta: Delta) -> TaskModel:
        if delta.task == "slow":
            gate.through()
        return loads(delta)

    library = Library(hub, load, LibrarySettings(loaders=1, loading=1))
    assert version(library, "quick") == 1
    waits = library.get("slow")
    assert gate.reached.wait(60)
    assert library.get("quick").done()
    with pytest.raises(BusyError):
        version(library, "quick@1")
    gate.open()
    assert waits.result(60).version == 1
    library.close()


def test_a_load_that_was_under_way_at_a_refresh_gives_what_the_refresh_would(
    hub: Hub, base: Base, mask: Mask, loads: Loads, gate: Gate
) -> None:
    push(hub, base, mask, 1)

    def load(delta: Delta) -> TaskModel:
        gate.through()
        return loads(delta)

    library = Library(hub, load)
    waits = library.get("sst2")
    assert gate.reached.wait(60)
    push(hub, base, mask, 2)
    library.refresh(["sst2"])
    gate.open()
    assert waits.result(60).version == 2
    library.close()


def test_two_names_of_one_version_that_are_asked_at_once_give_one_model(
    hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    push(hub, base, mask, 1)
    both = threading.Barrier(2)

    def load(delta: Delta) -> TaskModel:
        both.wait(60)
        return loads(delta)

    library = Library(hub, load)
    one, other = [future.result(60) for future in (library.get("sst2"), library.get("sst2@1"))]
    assert one is other
    assert one is library.get("sst2").result(60) is library.get("sst2@1").result(60)
    library.close()


def test_names_that_nobody_knows_cost_no_look_at_the_hub_each(hub: Hub, loads: Loads, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    store = Counted(hub.store)
    library = Library(Hub(store), loads, LibrarySettings(loaders=1), Clock())  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="did you mean sst2"):
        version(library, "sst3")
    store.calls.clear()
    for number in range(200):
        with pytest.raises(NotFoundError):
            version(library, f"guess-{number}")
    assert not [call for call in store.calls if not call.startswith("stat")]
    library.close()


@pytest.mark.parametrize(
    "name",
    ["", " ", "..", "../../etc/passwd", "a/b", "sst2@", "sst2@0", "sst2@x", "sst2:", "SST2", "\0", "x" * 10**6, "ä"],
)
def test_names_that_no_task_can_have_are_refused_without_a_look(library: Library, name: str) -> None:
    future = library.get(name)
    assert future.done()
    assert isinstance(future.exception(), UsageError)
    assert len(str(future.exception())) < 400


def test_a_listing_says_that_there_is_no_task_no_longer_than_until_a_refresh_is_due(
    hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    for remember, refresh in ((60.0, 5.0), (5.0, 60.0)):
        clock, task = Clock(), f"new-{remember:g}"
        library = Library(hub, loads, LibrarySettings(remember=remember, refresh=refresh), clock)
        library.listing.tasks()
        library.listing._cost = 30.0  # of a listing of many tasks
        push(hub, base, mask, 1, task=task)
        for now in (0.0, 4.9):
            clock.now = now
            with pytest.raises(NotFoundError):
                version(library, task)
        clock.now = 5.0
        assert version(library, task) == 1
        library.close()


def test_a_task_that_does_not_fit_the_base_is_refused(library: Library, hub: Hub, base: Base, tmp_path: Path) -> None:
    other = Mask.build(base, 0.03)
    hub.push(random_task(base, other, kind="embeddings", seed=1, task="odd"))
    with pytest.raises(MismatchError, match="aligned to another mask"):
        version(library, "odd")


def test_a_version_of_a_kind_that_has_no_answers_is_passed_over(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    delta = push(hub, base, mask, 1)
    hub.push(delta.with_manifest(kind="image-classification"))
    with pytest.raises(MismatchError, match="sst2@2 cannot be served"):
        version(library, "sst2@2")
    assert version(library, "sst2") == 1
