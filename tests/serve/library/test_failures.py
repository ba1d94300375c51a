"""What is answered where a version or the hub cannot be read."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
from deltahub_serve.library import Library
from deltahub_serve.settings import LibrarySettings

from deltahub import Base, Delta, Hub, Mask, TaskModel
from deltahub.errors import DeltahubError, IntegrityError, MismatchError, NotFoundError, StoreError
from tests.serve.conftest import Clock, Gate
from tests.serve.library.hubs import Loads, damage, push, version


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


def test_when_the_hub_is_gone_a_task_that_is_not_loaded_is_not_called_unknown(
    library: Library, hub: Hub, base: Base, mask: Mask, tmp_path: Path
) -> None:
    push(hub, base, mask, 1)
    (tmp_path / "hub").rename(tmp_path / "away")
    with pytest.raises(DeltahubError) as refused:
        version(library, "sst2")
    assert isinstance(refused.value, StoreError)


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
