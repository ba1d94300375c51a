"""What is there is told right in any number of questions, and in few where many are asked."""

from __future__ import annotations

import pytest

from deltahub import records
from deltahub.digest import of_bytes
from deltahub.hub import Hub
from deltahub.keys import blob
from deltahub.presence import Presence
from deltahub.stores import MemoryStore
from deltahub.syncing import Copy, sync
from tests.stores.watched import RemoteStore, put_blob
from tests.test_hub import dump, tiny


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("there", "asked", "requests"), [(0, 15, 15), (0, 16, 1), (1000, 16, 1), (1001, 16, 17)])
def test_few_questions_or_large_hubs_are_asked_one_by_one(remote, there, asked, requests):
    place = MemoryStore()
    keys = [put_blob(place, b"%d" % number) for number in range(there)]
    place.put(f"blobs/zz/{of_bytes(b'absent')}", b"in another's folder")
    place.delete(keys[0] if keys else "nothing")
    store = RemoteStore(place)
    wanted = [of_bytes(b"absent"), *(of_bytes(b"%d" % number) for number in range(asked - 1))]
    seen = Presence.of_blobs(store if remote else place, wanted)
    assert [seen.entry(blob(name)) for name in wanted] == [place.stat(blob(name)) for name in wanted]
    if remote:
        assert len(store.asked) == requests


class Taken(RemoteStore):
    """Another pushes and removes ``t05@1`` right before it is created here."""

    def put_new(self, key, data):
        if key == "tasks/t05/v00000001.json" and self.inner.stat("tasks/t05/v00000001.removed") is None:
            Hub(self.inner).push(tiny("t05", 99))
            Hub(self.inner).remove("t05@1")
        return super().put_new(key, data)


def test_a_number_that_another_used_and_removed_meanwhile_is_left_to_it():
    source, place = MemoryStore("source"), MemoryStore("place")
    for store in (source, place):
        store.put("hub.json", records.HUB)
    for number in range(20):
        Hub(source).push(tiny(f"t{number:02d}", number))
    target = Taken(place)
    report = sync(Hub(source), Hub(target))
    numbers = {copy.source: copy.target for copy in report.copied}
    assert numbers == {f"t{number:02d}@1": f"t{number:02d}@{1 + (number == 5)}" for number in range(20)}
    assert Copy("t05@1", "t05@2", Hub(source).version("t05").digest) in report.copied
    assert Hub(place).task("t05").numbers == (2,)
    assert dump(Hub(place).pull("t05")) == dump(tiny("t05", 5))
    assert [key for method, key in target.asked if method == "stat" and key.endswith(".removed")] == [
        "tasks/t05/v00000001.removed", "tasks/t05/v00000002.removed",
    ]  # fmt: skip
    assert Hub(place).verify().problems == ()
