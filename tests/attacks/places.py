"""A401 to A499: folders of hubs and outputs with links, pipes, devices and files in the way, and hubs that change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deltahub.delta import Delta
from deltahub.errors import DeltahubError, FormatError, IntegrityError, NotFoundError, StoreError
from deltahub.files import write_atomic
from deltahub.hub import Hub
from deltahub.stores import LocalStore
from tests.attacks.attack import RECORD, REFERENCE, TAG, Attack, Place, material

Run = Callable[[Place], object]


def _blob(place: Place) -> Path:
    hub = place.hub()
    record = hub.version(REFERENCE)
    name = record.sections[0].data.blob
    return place.target / "hub" / "blobs" / name[:2] / name


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)


def _blob_is(make: Callable[[Path], object], *, push: bool = False) -> Run:
    def run(place: Place) -> None:
        _instead(_blob(place), make)
        assert place.hub().verify().problems != ()
        hub = place.hub()
        if push:
            hub.push(Delta.loads(material().delta))
        hub.pull(REFERENCE)

    return run


def _link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _tag_is(make: Callable[[Path], object]) -> Run:
    """Read, which finds nothing; then moved, which must not go through."""

    def run(place: Place) -> None:
        hub = place.hub()
        _instead(place.target / "hub" / TAG, make)
        try:
            hub.pull("sst2:prod")
        except (NotFoundError, StoreError):
            hub.tag("sst2", 1, "prod")
            assert hub.tags("sst2") == {"prod": 1}
            return
        raise AssertionError("it was read")

    return run


def _folder_is_link(name: str, call: Callable[[Hub], object]) -> Run:
    """A folder of the hub leads outside, where the same files are."""

    def run(place: Place) -> None:
        hub = place.hub()
        folder = place.target / "hub" / name
        folder.rename(place.target / "elsewhere")
        folder.symlink_to(place.outside)
        call(hub)

    return run


def _looped(place: Place) -> None:
    hub = place.hub()
    (place.target / "hub" / "tasks" / "loop").symlink_to(place.target / "hub" / "tasks")
    (place.target / "hub" / "blobs" / "zz").symlink_to("zz")
    assert [info.task for info in hub.tasks()] == ["sst2"]
    assert hub.verify().problems == ()
    assert hub.gc(grace_seconds=0).deleted == ()


def _deep(place: Place) -> None:
    """Folders within folders, past the depth of Python's stack and the length of a path."""
    hub = place.hub()
    start = os.open(place.target / "hub" / "tasks", os.O_RDONLY)
    folder = start
    for _ in range(3000):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    try:
        assert [info.task for info in hub.tasks()] == ["sst2"]
        assert hub.verify().problems == ()
    finally:
        _remove_deep(place.target / "hub" / "tasks" / "d")


def _remove_deep(path: Path) -> None:
    """Longer paths than the system takes cannot be removed from above, so the chain is moved up bit by bit."""
    spare = path.with_name("spare")
    while path.exists():
        inner = path / "/".join(["d"] * 200)
        if inner.exists():
            inner.rename(spare)
        shutil.rmtree(path)
        if spare.exists():
            spare.rename(path)


def _hub_json_is(make: Callable[[Path], object]) -> Run:
    def run(place: Place) -> None:
        place.hub()
        _instead(place.target / "hub" / "hub.json", make)
        Hub.open(place.target / "hub")

    return run


def _changing(change: Callable[[Hub], object], reads: int = 1) -> Run:
    """The hub changes after so many reads of a pull."""

    def run(place: Place) -> None:
        hub = place.hub()
        store = hub.store
        get = store.get
        left = [reads]

        def late(key: str, start: int = 0, size: int | None = None) -> bytes:
            data = get(key, start, size)
            left[0] -= 1
            if left[0] == 0:
                change(hub)
            return data

        store.get = late  # type: ignore[method-assign]
        hub.pull("sst2:prod")

    return run


def _overwrite_blobs(hub: Hub) -> None:
    for entry in list(hub.store.list("blobs")):
        hub.store.put(entry.key, bytes(entry.size))


def _drop_blobs(hub: Hub) -> None:
    for entry in list(hub.store.list("blobs")):
        hub.store.delete(entry.key)


def _occupied(place: Place) -> None:
    """Folders in the place of the next versions: a push takes the next number that is free."""
    hub = place.hub()
    for number in (2, 3):
        (place.target / "hub" / f"tasks/sst2/v{number:08d}.json").mkdir()
    delta = Delta.loads(material().delta)
    assert hub.push(delta.with_manifest(licence="MIT")).number == 4


def _mark_of_tomorrow(place: Place) -> None:
    """A mark that a collector left is old after a minute by the store's clock; one of tomorrow is not ours."""
    hub = place.hub()
    place.write("hub/collecting/notes.txt", b"not a mark")
    assert hub.push(Delta.loads(material().delta).with_manifest(licence="MIT")).number == 2


def _save_over(make: Callable[[Place], Path]) -> Run:
    return lambda place: write_atomic(make(place), [b"theirs"])


def _pipe(place: Place) -> Path:
    os.mkfifo(place.target / "pipe")
    return place.target / "pipe"


def _unsafe_key(place: Place) -> None:
    store = LocalStore(place.target / "hub")
    for key in ("../outside/secret", "/etc/passwd", "a/../../outside/x", "a\0b"):
        for call in (store.get, store.stat, store.delete, lambda key: store.put(key, b""), store.put_new):
            try:
                call(key) if call != store.put_new else store.put_new(key, b"")
            except DeltahubError:
                continue
            raise AssertionError(key)


ATTACKS = [
    Attack(401, "a blob that is a link to /etc/passwd", _blob_is(_link("/etc/passwd")), NotFoundError),
    Attack(402, "a blob that is a link to a file beside the hub", _blob_is(_link("../../../../outside/secret")),
           NotFoundError),
    Attack(403, "a blob that is a link to itself", _blob_is(lambda path: path.symlink_to(path)), NotFoundError),
    Attack(404, "a blob that is a pipe", _blob_is(os.mkfifo), NotFoundError),
    Attack(405, "a blob that is a link to /dev/zero", _blob_is(_link("/dev/zero")), NotFoundError),
    Attack(406, "a blob that is a folder", _blob_is(Path.mkdir), NotFoundError),
    Attack(407, "a push over a blob that is a link", _blob_is(_link("../../../../outside/secret"), push=True),
           harmless="the link becomes the blob; what it led to stays"),
    Attack(408, "a push over a blob that is a folder", _blob_is(Path.mkdir, push=True), StoreError),
    Attack(409, "a push over a blob that is a pipe", _blob_is(os.mkfifo, push=True), StoreError),
    Attack(411, "a tag that is a link", _tag_is(_link("../../../outside/secret")),
           harmless="not read; moving the tag puts a file in its place"),
    Attack(412, "a tag that is a pipe", _tag_is(os.mkfifo), StoreError),
    Attack(413, "a tag that is a folder", _tag_is(Path.mkdir), StoreError),
    Attack(414, "a tasks folder that is a link, read", _folder_is_link("tasks", lambda hub: hub.pull(REFERENCE)),
           NotFoundError),
    Attack(415, "a tasks folder that is a link, pushed to",
           _folder_is_link("tasks", lambda hub: hub.push(Delta.loads(material().delta))), StoreError),
    Attack(416, "a blobs folder that is a link, collected",
           _folder_is_link("blobs", lambda hub: hub.gc(grace_seconds=0)),
           harmless="nothing there is listed or deleted"),
    Attack(417, "links that lead round in circles", _looped, harmless="passed over"),
    Attack(418, "3,000 folders within each other", _deep, harmless="passed over"),
    Attack(419, "a hub.json that is a pipe", _hub_json_is(os.mkfifo), DeltahubError),
    Attack(420, "a hub.json that is a link", _hub_json_is(_link("../../outside/secret")), DeltahubError),
    Attack(421, "folders in the place of versions to come", _occupied, harmless="the push takes the next free number"),
    Attack(422, "a file of another program among the marks", _mark_of_tomorrow, harmless="no push waits for it"),
    Attack(423, "keys with `..`, absolute, or with a NUL", _unsafe_key, harmless="each is refused by every method"),
    Attack(431, "blobs that are overwritten while they are read", _changing(_overwrite_blobs, 3), IntegrityError),
    Attack(432, "blobs that vanish while they are read", _changing(_drop_blobs, 2), NotFoundError),
    Attack(433, "a version that is removed while it is read",
           _changing(lambda hub: hub.remove("sst2", force=True)), NotFoundError),
    Attack(434, "a record that is cut while it is read",
           _changing(lambda hub: hub.store.put(RECORD, hub.store.get(RECORD)[:-9])), FormatError),
    Attack(441, "an output that is a pipe", _save_over(_pipe), StoreError),
    Attack(442, "an output that is a device", lambda _: write_atomic(Path("/dev/full"), [b"x"]), StoreError),
    Attack(443, "an output in a folder that is not there", lambda place: write_atomic(place.target / "a/b", [b"x"]),
           StoreError),
]  # fmt: skip
