"""Files to hubs and back: whole or not at all, and nobody's file is lost."""

from __future__ import annotations

import errno
import os

import pytest

from deltahub import transfer
from deltahub.delta import Delta
from deltahub.errors import DeltahubError, FormatError, NotFoundError, StoreError, UsageError
from deltahub.files import write_atomic
from deltahub.hub import Hub, TaskVersion
from deltahub.transfer import pull_file, push_file
from tests.test_hub import dump, tiny


class Interrupted(BaseException):
    pass


@pytest.fixture
def hub(tmp_path) -> Hub:
    hub = Hub.open(tmp_path / "hub")
    hub.push(tiny("a", 0), ["prod"])
    hub.push(tiny("a", 1))
    return hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_from_a_file_to_the_hub_to_the_same_file(hub, folder):
    first = tiny("b", 5).save(folder / "b.delta")
    seen = []
    found = push_file(first, hub, tags=["best"], progress=lambda done, total: seen.append((done, total)))
    assert found == TaskVersion("b", 1, tiny("b", 5).digest)
    assert seen[-1] == (hub.version("b").stored,) * 2
    for reference in ("b", "b@1", "b:best"):
        assert pull_file(hub, reference, folder / "again.delta", force=True) == found
        assert (folder / "again.delta").read_bytes() == first.read_bytes()
    assert push_file(folder / "again.delta", hub) == found
    rounded = push_file(first, hub, values="int8")
    assert rounded.number == 2
    assert Delta.load(pull_to(hub, "b@2", folder / "int8.delta")).manifest.quantization["values"].rounding == "int8"


def pull_to(hub: Hub, reference: str, path):
    pull_file(hub, reference, path)
    return path


@pytest.mark.parametrize("content", [b"", b"not a delta", None])
def test_what_is_no_delta_is_not_pushed(hub, folder, content):
    path = folder / "x.delta"
    path.write_bytes(dump(tiny("c", 0))[:-1] if content is None else content)
    before = {entry.key for entry in hub.store.list()}
    with pytest.raises(FormatError, match=r"x\.delta"):
        push_file(path, hub)
    with pytest.raises(DeltahubError, match=r"y\.delta"):
        push_file(folder / "y.delta", hub)
    assert {entry.key for entry in hub.store.list()} == before


def test_another_file_is_kept_unless_forced(hub, folder):
    path = folder / "a.delta"
    other = dump(tiny("a", 0))
    for content in (b"my thesis", b"", other, bytes(len(dump(tiny("a", 1))))):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.delta exists and is not a@2; use --force"):
            pull_file(hub, "a", path)
        assert path.read_bytes() == content
    pull_file(hub, "a", path, force=True)
    assert path.read_bytes() == dump(tiny("a", 1))
    assert list(folder.iterdir()) == [path]


def test_the_very_same_file_is_left_as_it_is_and_no_value_is_read(hub, folder, monkeypatch):
    path = pull_to(hub, "a", folder / "a.delta")
    before = path.stat()
    for entry in list(hub.store.list("blobs")):
        hub.store.delete(entry.key)
    assert pull_file(hub, "a", path) == TaskVersion("a", 2, tiny("a", 1).digest)
    assert path.stat() == before


def test_a_file_that_appears_meanwhile_is_kept(hub, folder):
    path = folder / "a.delta"
    with pytest.raises(UsageError, match=r"a\.delta"):
        pull_file(hub, "a", path, progress=lambda *_: path.write_bytes(b"mine"))
    assert path.read_bytes() == b"mine"
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, ValueError])
def test_an_interrupted_pull_leaves_what_was_there(hub, folder, force, error):
    path = folder / "a.delta"
    if force:
        path.write_bytes(b"mine")

    def stop(done: int, total: int) -> None:
        if done < total:
            raise error

    with pytest.raises(error):
        pull_file(hub, "a", path, force=force, progress=stop)
    assert [found.read_bytes() for found in folder.iterdir()] == ([b"mine"] if force else [])


@pytest.mark.parametrize("force", [True, False])
def test_a_full_disk_leaves_what_was_there(hub, folder, monkeypatch, force):
    path = folder / "a.delta"
    if force:
        path.write_bytes(b"mine")
    real, room = os.write, [100]

    def short(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(StoreError, match="No space left"):
        pull_file(hub, "a", path, force=force)
    assert [found.read_bytes() for found in folder.iterdir()] == ([b"mine"] if force else [])


def test_a_damaged_blob_never_reaches_a_file(hub, folder):
    section = hub.version("a").sections[-1].data
    key = f"blobs/{section.blob[:2]}/{section.blob}"
    hub.store.put(key, hub.store.get(key)[::-1])
    with pytest.raises(DeltahubError, match=section.blob[:16]):
        pull_file(hub, "a", folder / "a.delta")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("force", [True, False])
def test_places_that_are_no_file_are_refused(hub, folder, force):
    (folder / "inner").mkdir()
    (folder / "inner" / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="inner is a folder"):
        pull_file(hub, "a", folder / "inner", force=force)
    with pytest.raises(StoreError, match="No such file"):
        pull_file(hub, "a", folder / "nowhere" / "a.delta", force=force)
    with pytest.raises(NotFoundError, match="no version 9"):
        pull_file(hub, "a@9", folder / "a.delta", force=force)
    assert [path.name for path in folder.rglob("*")] == ["inner", "mine"]


def test_the_name_appears_only_when_all_is_there(hub, folder, monkeypatch):
    seen = []

    def watched(path, parts, **options):
        def watch():
            for part in parts:
                seen.append(path.exists())
                yield part

        return write_atomic(path, watch(), **options)

    monkeypatch.setattr(transfer, "write_atomic", watched)
    pull_file(hub, "a", folder / "a.delta")
    assert len(seen) > 2
    assert not any(seen)
