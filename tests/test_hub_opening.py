"""What is a hub and what is not, and what else lies in its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from deltahub.errors import FormatError, NotFoundError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.stores import MemoryStore
from tests.deltas import random_delta


@pytest.fixture(scope="module")
def base(base_of):
    return base_of("bert")


@pytest.fixture(scope="module")
def mask(base) -> Mask:
    return Mask.build(base, 0.02)


def test_a_memory_name_is_one_hub_and_another_name_another(base, mask):
    name = "memory://opened-twice"
    first, second = Hub.open(name), Hub.open(name)
    first.push(random_delta(base, mask), ["prod"])
    assert second.tags("sst2") == {"prod": 1}
    assert second.push(random_delta(base, mask, 1)).number == 2
    assert first.pull("sst2").digest == second.pull("sst2").digest
    assert Hub.open("memory://opened-once").tasks() == []


def test_a_folder_with_other_files_is_not_made_a_hub(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"is no hub.*thesis\.txt.*empty folder"):
        Hub.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_is_created_where_only_a_look_is_wanted(tmp_path):
    with pytest.raises(NotFoundError, match="no hub at"):
        Hub.open(tmp_path / "hub", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [b'{"format":"deltahub","format_version":2}', b"", b"{}", b"x" * 10_000])
def test_a_newer_or_damaged_hub_is_refused(tmp_path, head):
    Hub.open(tmp_path)
    (tmp_path / "hub.json").write_bytes(head)
    newer = rf"the hub at {re.escape(str(tmp_path))} has format 2, this deltahub reads 1; upgrade deltahub"
    with pytest.raises(FormatError, match=newer if b"2" in head else r"hub\.json .*is damaged"):
        Hub.open(tmp_path)
    assert (tmp_path / "hub.json").read_bytes() == head


def test_opening_at_the_same_moment_as_another(base, mask):
    """The other makes the hub and pushes between our look for hub.json and our look for strangers."""

    class Late(MemoryStore):
        def list(self, folder: str = "") -> Iterator:
            if not folder and super().stat("hub.json") is None:
                Hub.open("memory://late").push(random_delta(base, mask))
                self._objects = dict(Hub.open("memory://late").store._objects)
            return super().list(folder)

    from deltahub import stores

    stores._memory["late-too"] = Late("late-too")
    assert [info.task for info in Hub.open("memory://late-too").tasks()] == ["sst2"]


def test_files_of_other_programs_are_left_alone(tmp_path, base, mask):
    hub = Hub.open(tmp_path)
    hub.push(random_delta(base, mask))
    strangers = [
        "README", "tasks/README", "tasks/.DS_Store", "tasks/sst2/notes.txt", "tasks/sst2/old/v00000007.json",
        "tasks/sst2/v0000000².json", "tasks/sst2/v00000000.json", "tasks/SST2/v00000001.json", "tasks/mine/notes",
        "tasks/sst2/tag.Prod.json", "blobs/.DS_Store", "blobs/a b", "masks/.DS_Store", "masks/a.json",
        "bases/.DS_Store", "tasks/with space/v00000001.json",
    ]  # fmt: skip
    for name in strangers:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("mine")
    assert [(info.task, info.newest, info.versions, info.tags) for info in hub.tasks()] == [("sst2", 1, 1, ())]
    assert hub.push(random_delta(base, mask, 1)).number == 2
    assert hub.verify().problems == ()
    assert len(hub.masks()) == len(hub.report().masks) == 1
    hub.remove("sst2")
    hub.gc(grace_seconds=0)
    assert all((tmp_path / name).read_text() == "mine" for name in strangers)
