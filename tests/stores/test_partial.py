"""A download in a file, and who clears the cache meanwhile."""

from __future__ import annotations

import fcntl

from deltahub.stores import partial


def test_a_download_that_began_in_place_of_a_finished_one_is_not_removed(tmp_path, monkeypatch):
    path = tmp_path / "blob.part"
    first = partial.hold(path, 0.0)
    first.append(b"first")
    later: list[partial.Partial] = []
    lock = fcntl.flock

    def between(descriptor: int, how: int) -> None:
        """The first download ends, and another begins, just before ``remove`` asks for its lock."""
        monkeypatch.setattr(fcntl, "flock", lock)
        first.finish(tmp_path / "first")
        first.close()
        later.append(partial.hold(path, 0.0))
        later[0].append(b"second")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", between)
    assert partial.remove(path) is False
    assert later[0].finish(tmp_path / "second")
    later[0].close()
    assert [(tmp_path / name).read_bytes() for name in ("first", "second")] == [b"first", b"second"]
