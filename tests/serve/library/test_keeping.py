"""What stays in memory, and which share of the requests each version gets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from deltahub_serve.library import Library
from deltahub_serve.settings import LibrarySettings

from deltahub import Base, Hub, Mask
from deltahub.errors import NotFoundError
from tests.serve.library.hubs import Loads, damage, push, version


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
