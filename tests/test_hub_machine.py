"""A hub under random pushes, tags, removals and collections is what a plain dictionary says that it is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from deltahub.errors import HubError, NotFoundError
from deltahub.hub import Hub, TaskVersion
from tests.conftest import SOAK
from tests.test_hub import blobs, dump, tiny

_names = itertools.count()


class HubMachine(RuleBasedStateMachine):
    """Whatever is done to a hub, every live version is what was pushed, and nothing more is kept than needed."""

    pushed = Bundle("pushed")

    @initialize()
    def start(self) -> None:
        self.hub = Hub.open(f"memory://machine-{next(_names)}")
        self.live: dict[tuple[str, int], bytes] = {}
        self.tags: dict[tuple[str, str], int] = {}
        self.newest: dict[str, int] = {}

    @rule(target=pushed, task=st.sampled_from(["a", "b"]), seed=st.integers(0, 3), mask=st.booleans())
    def push(self, task: str, seed: int, mask: bool) -> tuple[str, int]:
        delta = tiny(task, seed, mask)
        live = [number for name, number in self.live if name == task]
        equal = bool(live) and self.live[task, max(live)] == dump(delta)
        number = max(live) if equal else self.newest.get(task, 0) + 1
        assert self.hub.push(delta) == TaskVersion(task, number, delta.digest)
        self.newest[task] = max(number, self.newest.get(task, 0))
        self.live[task, number] = dump(delta)
        return task, number

    @rule(version=pushed, tag=st.sampled_from(["x", "y"]))
    def tag(self, version: tuple[str, int], tag: str) -> None:
        task, number = version
        if version in self.live:
            self.hub.tag(task, number, tag)
            self.tags[task, tag] = number
        else:
            with pytest.raises(NotFoundError):
                self.hub.tag(task, number, tag)

    @rule(task=st.sampled_from(["a", "b"]), tag=st.sampled_from(["x", "y"]))
    def untag(self, task: str, tag: str) -> None:
        if self.tags.pop((task, tag), None):
            self.hub.untag(task, tag)
        else:
            with pytest.raises(NotFoundError):
                self.hub.untag(task, tag)

    @rule(version=consumes(pushed), force=st.booleans())
    def remove(self, version: tuple[str, int], force: bool) -> None:
        task, number = version
        named = {key for key, value in self.tags.items() if key[0] == task and value == number}
        if version not in self.live:
            with pytest.raises(NotFoundError):
                self.hub.remove(f"{task}@{number}", force=force)
        elif named and not force:
            with pytest.raises(HubError, match="named by"):
                self.hub.remove(f"{task}@{number}")
        else:
            assert self.hub.remove(f"{task}@{number}", force=force) == [f"{task}@{number}"]
            del self.live[version]
            for key in named:
                del self.tags[key]

    @precondition(lambda self: any(task == "a" for task, _ in self.live))
    @rule()
    def remove_task(self) -> None:
        numbers = sorted(number for task, number in self.live if task == "a")
        assert self.hub.remove("a", force=True) == [f"a@{number}" for number in numbers]
        self.live = {key: value for key, value in self.live.items() if key[0] != "a"}
        self.tags = {key: value for key, value in self.tags.items() if key[0] != "a"}

    @rule(dry_run=st.booleans())
    def gc(self, dry_run: bool) -> None:
        planned = self.hub.gc(dry_run=True, grace_seconds=0)
        before = {entry.key: entry.size for entry in self.hub.store.list()}
        if dry_run:
            return
        assert self.hub.gc(grace_seconds=3600).deleted == ()
        assert self.hub.gc(grace_seconds=0) == planned
        after = {entry.key: entry.size for entry in self.hub.store.list()}
        assert before.keys() - after.keys() == set(planned.deleted)
        assert sum(before.values()) - sum(after.values()) == planned.bytes
        sections = [s.data for task in self.hub.tasks() for r in self.hub.versions(task.task) for s in r.sections]
        assert blobs(self.hub) == {f"blobs/{data.blob[:2]}/{data.blob}": data.stored for data in sections}

    @invariant()
    def everything_is_there_and_sound(self) -> None:
        found = {(r.task, r.number) for task in self.hub.tasks() for r in self.hub.versions(task.task)}
        assert found == self.live.keys()
        for (task, number), data in self.live.items():
            assert dump(self.hub.pull(f"{task}@{number}")) == data
        tags = {(task, tag): n for task in ("a", "b") for tag, n in self.hub.tags(task).items()}
        assert tags == self.tags
        verified = self.hub.verify()
        assert (verified.problems, verified.versions) == ((), len(self.live))


HubMachine.TestCase.settings = settings(max_examples=400 if SOAK else 15, stateful_step_count=20, deadline=None)
TestHubMachine = HubMachine.TestCase
