"""Several writers at once, in threads and in processes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

from deltahub.hub import Hub
from tests.faults.soundness import assert_sound, visible
from tests.faults.stores import SOAK
from tests.test_hub import dump, tiny


def test_two_processes_that_push_one_task_get_two_versions(tmp_path):
    """They also make the hub, both at once."""
    fork = multiprocessing.get_context("fork")
    rounds = 200 if SOAK else 6
    barrier = fork.Barrier(2)

    def push(seed: int) -> None:
        for turn in range(rounds):
            barrier.wait(60)
            Hub.open(tmp_path / str(turn)).push(tiny("a", seed + turn), ["prod"])

    pushers = [fork.Process(target=push, args=(seed,)) for seed in (0, 1000)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
        assert pusher.exitcode == 0
    for turn in range(rounds):
        hub = Hub.open(tmp_path / str(turn), create=False)
        assert {dump(hub.pull(f"a@{n}")) for n in (1, 2)} == {dump(tiny("a", turn)), dump(tiny("a", 1000 + turn))}
        assert [record.number for record in hub.versions("a")] == [1, 2]
        assert hub.tags("a")["prod"] in (1, 2)
        assert hub.gc(grace_seconds=0).deleted == ()
        assert_sound(hub, visible(hub))


def test_many_threads_push_tag_remove_and_collect_at_once(tmp_path):
    hub = Hub.open(tmp_path / "hub")

    def work(worker: int) -> None:
        for turn in range(100 if SOAK else 4):
            delta = tiny("a", 1000 * worker + turn)
            number = hub.push(delta).number
            assert dump(hub.pull(f"a@{number}")) == dump(delta)
            if turn % 2:
                hub.remove(f"a@{number}", force=True)
            else:
                hub.tag("a", number, f"t{worker}-{turn}")
            if worker == 0:
                hub.gc()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(hub.versions("a")) == len(hub.tags("a")) == (200 if SOAK else 8)
    hub.gc(grace_seconds=0)
    assert hub.verify().loose == ()
    expected = {}
    for tag, number in hub.tags("a").items():
        worker, turn = (int(part) for part in tag[1:].split("-"))
        expected[f"a@{number}"] = dump(tiny("a", 1000 * worker + turn))
    assert_sound(hub, expected)
