"""Names to loaded tasks, over a real hub in a folder."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltahub_serve.futures import BusyError
from deltahub_serve.library import Library
from deltahub_serve.settings import LibrarySettings

from deltahub import Base, Delta, Hub, Mask, Resident, TaskModel
from deltahub.errors import DeltahubError, IntegrityError, MismatchError, NotFoundError, StoreError, UsageError
from deltahub.heads import load_tokenizer
from tests.serve.conftest import Clock, Gate
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    return Mask.build(base, 0.05)


@pytest.fixture(scope="module")
def resident(base: Base, mask: Mask) -> Resident:
    return Resident.load(base, mask)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub.open(tmp_path / "hub")


class Loads:
    """Counts what is loaded, by task and digest."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.tokenizer = load_tokenizer(resident.base)
        self.counts: Counter[str] = Counter()

    def __call__(self, delta: Delta) -> TaskModel:
        self.counts[delta.digest] += 1
        return TaskModel(self.resident, self.tokenizer, delta)


@pytest.fixture
def loads(resident: Resident) -> Loads:
    return Loads(resident)


@pytest.fixture
def library(hub: Hub, loads: Loads) -> Iterator[Library]:
    made = Library(hub, loads, clock=Clock())
    yield made
    made.close()


def push(hub: Hub, base: Base, mask: Mask, seed: int, task: str = "sst2", tags: tuple[str, ...] = ()) -> Delta:
    delta = random_task(base, mask, kind="text-classification", seed=seed, task=task)
    hub.push(delta, tags=tags)
    return delta


def version(library: Library, name: str) -> int:
    return library.get(name).result(60).version


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


def damage(hub: Hub, reference: str, folder: Path) -> None:
    blob = hub.version(reference).sections[-1].data.blob
    path = next(path for path in folder.rglob(f"*{blob[2:]}*"))
    path.write_bytes(b"x" * path.stat().st_size)


def test_a_damaged_version_never_displaces_a_good_one(
    library: Library, hub: Hub, base: Base, mask: Mask, tmp_path: Path, loads: Loads
) -> None:
    push(hub, base, mask, 1)
    assert version(library, "sst2") == 1
    push(hub, base, mask, 2)
    damage(hub, "sst2@2", tmp_path / "hub")
    assert library.refresh() == []
    assert version(library, "sst2") == 1
    assert "sst2" in library.trouble
    with pytest.raises(IntegrityError):
        version(library, "sst2@2")
    fresh = Library(hub, loads)
    assert version(fresh, "sst2") == 1
    assert "sst2@1 answers in its place" in fresh.trouble["sst2"]
    fresh.close()
    push(hub, base, mask, 3)
    library.refresh()
    assert version(library, "sst2") == 3
    assert library.trouble == {}


def test_a_hub_that_has_gone_leaves_what_is_loaded(
    library: Library, hub: Hub, base: Base, mask: Mask, tmp_path: Path
) -> None:
    push(hub, base, mask, 1)
    assert version(library, "sst2") == 1
    (tmp_path / "hub").rename(tmp_path / "away")
    (tmp_path / "hub").write_text("no folder any more")
    with pytest.raises(StoreError):
        library.refresh()
    assert version(library, "sst2") == 1
    assert library.watch.trouble() is not None
    (tmp_path / "hub").unlink()
    (tmp_path / "away").rename(tmp_path / "hub")
    library.refresh()
    assert (version(library, "sst2"), library.trouble, library.watch.trouble()) == (1, {}, None)


def test_a_removed_task_is_not_answered_after_the_refresh(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    version(library, "sst2")
    hub.remove("sst2")
    library.refresh()
    with pytest.raises(NotFoundError):
        version(library, "sst2")


def test_a_failure_is_remembered_for_a_while(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    clock = Clock()
    library = Library(hub, loads, LibrarySettings(remember=2.0), clock)
    with pytest.raises(NotFoundError):
        version(library, "sst2")
    push(hub, base, mask, 1)
    with pytest.raises(NotFoundError):
        version(library, "sst2")
    clock.now = 2.0
    assert version(library, "sst2") == 1
    library.close()


def test_the_budget_keeps_the_latest_used_and_what_is_pinned(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    for number, task in enumerate(("a", "b", "c", "d")):
        push(hub, base, mask, number, task=task)
    size = Library(hub, loads).get("a").result(60).size
    library = Library(hub, loads, LibrarySettings(budget=2 * size + size // 2))
    library.pin("a")
    for task in ("b", "c", "d"):
        version(library, task)
    assert [loaded.task for loaded in library.loaded()] == ["a", "d"]
    assert version(library, "b") == 1
    assert library.evict() == 1
    assert [loaded.task for loaded in library.loaded()] == ["a"]
    library.unpin("a")
    assert library.evict("a") == 1
    library.close()


def test_traffic_is_split_by_shares(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    for seed in (1, 2):
        push(hub, base, mask, seed)
    library = Library(hub, loads, LibrarySettings(splits={"sst2": {1: 0.8, 2: 0.2}}))
    library._choose.seed(0)
    found = Counter(version(library, "sst2") for _ in range(400))
    assert 0.7 < found[1] / 400 < 0.9
    assert version(library, "sst2@2") == 2
    library.close()


def test_a_task_that_does_not_fit_the_base_is_refused(library: Library, hub: Hub, base: Base, tmp_path: Path) -> None:
    other = Mask.build(base, 0.03)
    hub.push(random_task(base, other, kind="embeddings", seed=1, task="odd"))
    with pytest.raises(MismatchError, match="aligned to another mask"):
        version(library, "odd")


def test_one_who_gives_up_does_not_take_the_load_from_the_others(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    push(hub, base, mask, 1)
    library.get("sst2").cancel()
    assert version(library, "sst2") == 1


@pytest.mark.parametrize("what", ["blob", "record"])
def test_a_version_with_a_part_missing_or_damaged_is_passed_over(
    hub: Hub, base: Base, mask: Mask, loads: Loads, tmp_path: Path, what: str
) -> None:
    push(hub, base, mask, 1)
    held = Library(hub, loads)
    assert version(held, "sst2") == 1
    push(hub, base, mask, 2)
    blob = hub.version("sst2@2").sections[-1].data.blob
    name = f"*{blob[2:]}*" if what == "blob" else "*00000002*"
    path = next(path for path in (tmp_path / "hub").rglob(name) if path.is_file())
    path.unlink() if what == "blob" else path.write_bytes(b"{}")
    fresh = Library(hub, loads)
    held.refresh()
    assert (version(held, "sst2"), version(fresh, "sst2")) == (1, 1)
    held.close()
    fresh.close()


def test_one_task_that_cannot_be_loaded_does_not_stop_the_others(
    hub: Hub, base: Base, mask: Mask, loads: Loads
) -> None:
    for task in ("a", "b"):
        push(hub, base, mask, 1, task=task)
    bad = hub.pull("a").digest

    def load(delta: Delta) -> TaskModel:
        if delta.task == "a" and delta.digest != bad:
            raise RuntimeError("out of memory")
        return loads(delta)

    library = Library(hub, load)
    assert version(library, "a") == version(library, "b") == 1
    for task in ("a", "b"):
        push(hub, base, mask, 2, task=task)
    assert library.refresh() == ["b"]
    assert "out of memory" in library.trouble["a"]
    library.close()


def test_a_smaller_budget_is_kept_to_at_once(hub: Hub, base: Base, mask: Mask, loads: Loads) -> None:
    for number, task in enumerate(("a", "b", "c")):
        push(hub, base, mask, number, task=task)
    library = Library(hub, loads)
    for task in ("a", "b", "c"):
        version(library, task)
    library.pin("b")
    library.configure(LibrarySettings(budget=0))
    assert [loaded.task for loaded in library.loaded()] == ["b"]
    assert library.counters.evictions == 2
    library.close()


def test_a_pin_follows_its_name_to_a_new_version(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    library.pin("sst2")
    push(hub, base, mask, 2)
    library.refresh()
    library.configure(LibrarySettings(budget=0))
    assert [loaded.reference for loaded in library.loaded()] == ["sst2@2"]


def test_kept_names_are_loaded_and_those_that_fail_are_told(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    library.prefetch(["sst2", "lost"], 60)
    library.configure(library.settings, ["sst2", "lost"])
    assert library.pinned == ("lost", "sst2")
    assert list(library.trouble) == ["lost"]
    push(hub, base, mask, 1, task="lost")
    library.refresh()
    assert version(library, "lost") == 1
    assert library.trouble == {}
    assert library.unpin("lost")
    assert not library.unpin("lost")


def test_a_share_that_cannot_be_loaded_goes_to_the_others(
    hub: Hub, base: Base, mask: Mask, loads: Loads, tmp_path: Path
) -> None:
    for seed in (1, 2, 3):
        push(hub, base, mask, seed)
    damage(hub, "sst2@2", tmp_path / "hub")
    library = Library(hub, loads, LibrarySettings(splits={"sst2": {1: 0.4, 2: 0.6}, "lost": {1: 0.5, 2: 0.5}}))
    assert {version(library, "sst2") for _ in range(20)} == {1}
    assert "the other versions of sst2 answer in its place" in library.trouble["sst2@2"]
    with pytest.raises(NotFoundError):
        version(library, "lost")
    library.close()


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


class Counted:
    """A store that counts what is read of it, by the first part of the method and key."""

    def __init__(self, store: object) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        method = getattr(self.store, name)

        def call(*arguments: object, **more: object) -> object:
            self.calls[f"{name} {str(arguments[0]).partition('/')[0]}"] += 1
            return method(*arguments, **more)

        return call if callable(method) else method


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


def test_a_hub_that_hangs_stops_nobody_who_is_loaded(
    hub: Hub, base: Base, mask: Mask, loads: Loads, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub, base, mask, 1)
    clock = Clock()
    library = Library(hub, loads, clock=clock)
    assert version(library, "sst2") == 1
    listed = hub.store.list

    def hangs(folder: str = "") -> object:
        gate.through()
        return listed(folder)

    monkeypatch.setattr(hub.store, "list", hangs)
    refreshing = threading.Thread(target=library.refresh)
    refreshing.start()
    assert gate.reached.wait(60)
    clock.now = 11.0
    assert version(library, "sst2") == 1
    assert library.watch.trouble() == "the hub has not answered for 11 s"
    gate.open()
    refreshing.join(60)
    assert library.watch.trouble() is None
    library.close()


def test_a_version_that_failed_is_tried_again_less_and_less_often(
    hub: Hub, base: Base, mask: Mask, loads: Loads, tmp_path: Path
) -> None:
    push(hub, base, mask, 1)
    clock = Clock()
    library = Library(hub, loads, LibrarySettings(refresh=10.0), clock)
    version(library, "sst2")
    push(hub, base, mask, 2)
    damage(hub, "sst2@2", tmp_path / "hub")
    for _ in range(60):
        version(library, "sst2")
        library.refresh()
        clock.now += 10.0
    assert 3 <= library.counters.load_failures <= 7
    push(hub, base, mask, 2)  # heals what is damaged, and makes no new version
    assert library.refresh(["sst2"]) == ["sst2"]
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


def test_when_the_hub_is_gone_a_task_that_is_not_loaded_is_not_called_unknown(
    library: Library, hub: Hub, base: Base, mask: Mask, tmp_path: Path
) -> None:
    push(hub, base, mask, 1)
    (tmp_path / "hub").rename(tmp_path / "away")
    with pytest.raises(DeltahubError) as refused:
        version(library, "sst2")
    assert isinstance(refused.value, StoreError)


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


def test_an_outage_makes_no_name_forgotten(hub: Hub, base: Base, mask: Mask, loads: Loads, tmp_path: Path) -> None:
    push(hub, base, mask, 1, tags=("prod",))
    clock = Clock()
    library = Library(hub, loads, clock=clock)
    names = ("sst2", "sst2@1", "sst2:prod")
    for now in (0.0, 1.0, 5.0):
        clock.now = now
        assert [version(library, name) for name in names] == [1, 1, 1]
        library.refresh()
    clock.now = 200.0
    (tmp_path / "hub").rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(StoreError):
            library.refresh()
    assert [version(library, name) for name in names] == [1, 1, 1]
    (tmp_path / "away").rename(tmp_path / "hub")
    library.refresh()
    clock.now = 400.0
    library.refresh()
    assert library._in_use(None) == []
    (tmp_path / "hub").rename(tmp_path / "away")
    assert [version(library, name) for name in names] == [1, 1, 1]
    assert sorted(library._in_use(None)) == sorted(names)
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


def test_what_is_remembered_of_a_failure_keeps_nothing_in_memory_and_does_not_grow(
    hub: Hub, base: Base, mask: Mask
) -> None:
    push(hub, base, mask, 1)
    pulled = []

    def load(delta: Delta) -> TaskModel:
        pulled.append(weakref.ref(delta))
        raise RuntimeError("out of memory")

    clock = Clock()
    library = Library(hub, load, clock=clock)
    lengths = set()
    for _ in range(20):
        with pytest.raises(MismatchError, match="out of memory") as caught:
            version(library, "sst2@1")
        lengths.add(len(caught.traceback))
    del caught
    gc.collect()
    assert [delta() for delta in pulled] == [None]
    assert len(lengths) <= 2, "the first one waited"
    clock.now += 60.0
    with pytest.raises(NotFoundError):
        version(library, "sst2:nobody")
    assert list(library._loader._failed) == ["sst2:nobody"]
    library.close()


def test_a_version_of_a_kind_that_has_no_answers_is_passed_over(
    library: Library, hub: Hub, base: Base, mask: Mask
) -> None:
    delta = push(hub, base, mask, 1)
    hub.push(delta.with_manifest(kind="image-classification"))
    with pytest.raises(MismatchError, match="sst2@2 cannot be served"):
        version(library, "sst2@2")
    assert version(library, "sst2") == 1


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


def test_the_trouble_of_names_that_nobody_needs_any_more_goes_away(
    library: Library, hub: Hub, base: Base, mask: Mask, tmp_path: Path
) -> None:
    for seed in (1, 2):
        push(hub, base, mask, seed)
    damage(hub, "sst2@2", tmp_path / "hub")
    library.configure(LibrarySettings(splits={"sst2": {1: 0.001, 2: 0.999}}), ["lost"])
    assert {version(library, "sst2") for _ in range(20)} == {1}
    library.prefetch(["lost"], 60)
    library.refresh()
    assert library.trouble.keys() == {"sst2@2", "lost"}
    library.configure(LibrarySettings(), ["lost"])
    assert library.trouble.keys() == {"lost"}
    version(library, "sst2")
    assert library.trouble.keys() == {"lost", "sst2"}
    library.refresh()
    assert library.trouble.keys() == {"lost", "sst2"}
    library.evict()
    library.refresh()
    assert library.trouble.keys() == {"lost"}


def test_the_trouble_of_a_name_that_is_unpinned_goes_away(library: Library, hub: Hub, base: Base, mask: Mask) -> None:
    push(hub, base, mask, 1)
    library.configure(library.settings, ["sst2", "lost"])
    library.close()  # waits for what is being loaded
    assert library.trouble.keys() == {"lost"}
    library.unpin("lost")
    assert library.trouble == {}


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
