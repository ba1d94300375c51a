"""Disks that are full or cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltahub.errors import StoreError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from deltahub.syncing import sync
from tests.faults.soundness import assert_sound
from tests.faults.stores import some
from tests.test_hub import dump, tiny


@contextlib.contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own in memory, where this process may mount one."""
    mount, umount = (f"/usr/bin/{name}" for name in ("mount", "umount"))
    folder.mkdir()
    if os.geteuid() or subprocess.run([mount, "-t", "tmpfs", *options, "none", folder], check=False).returncode:
        pytest.skip("only root may mount a small disk; the next test does the same by failing calls")
    try:
        yield folder
    finally:
        subprocess.run([umount, folder], check=True)


def test_a_disk_that_gets_full_keeps_what_was_acknowledged(tmp_path):
    with small_disk(tmp_path / "disk", "-o", "size=128k") as folder:
        hub, expected = Hub.open(folder), {}

        def push(seed: int) -> None:
            delta = tiny("a", seed)
            expected[f"a@{hub.push(delta).number}"] = dump(delta)

        with pytest.raises(StoreError, match="No space left"):
            deque(map(push, range(1000)), maxlen=0)
        assert len(expected) > 3
        gone = sorted(expected, key=lambda name: int(name[2:]))[:2]
        hub.remove(gone[0])
        hub.remove(gone[1])
        hub.gc(grace_seconds=0)
        assert_sound(hub, {name: data for name, data in expected.items() if name not in gone})


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_any_write_keeps_what_was_acknowledged(tmp_path, monkeypatch, error):
    hub = Hub.open(tmp_path)
    hub.push(tiny("a", 0))
    calls, last = [0], [-1]
    for name in ("write", "fsync", "link", "replace", "mkdir"):
        real = getattr(os, name)

        def call(*arguments: object, real=real, **options: object) -> object:
            calls[0] += 1
            if 0 <= last[0] < calls[0]:
                raise OSError(error, os.strerror(error))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)
    hub.push(tiny("b", 1))
    hub.remove("b")
    total, expected, failed = calls[0], {"a@1": dump(tiny("a", 0))}, 0
    for number in some(total, 3):
        calls[0], last[0] = 0, number
        delta = tiny("c", 10 + number)
        told = ""
        try:
            hub.push(delta)
        except StoreError as refused:
            told = str(refused)
        failed += bool(told)
        assert not told or os.strerror(error) in told
        last[0] = -1
        assert_sound(hub, expected, [dump(delta)])
        assert list(hub.store.unfinished()) == []
        if hub.task("c"):
            hub.remove("c")
    assert failed > 2


def test_a_hub_that_cannot_be_written_can_be_read(tmp_path):
    with small_disk(tmp_path / "disk", "-o", "size=1m") as folder:
        Hub.open(folder).push(tiny("a", 0), ["prod"])
        subprocess.run(["/usr/bin/mount", "-o", "remount,ro", folder], check=True)
        hub = Hub.open(folder)
        for write in (
            lambda: hub.push(tiny("a", 1)), lambda: hub.tag("a", 1, "x"), lambda: hub.remove("a", force=True),
            lambda: hub.gc(grace_seconds=0),
        ):  # fmt: skip
            with pytest.raises(StoreError, match="Read-only"):
                write()
        copied = Hub(MemoryStore("copied"))
        copied.store.put("hub.json", hub.store.get("hub.json"))
        sync(hub, copied)
        assert hub.verify().problems == ()
        assert_sound(copied, {"a@1": dump(tiny("a", 0))})
