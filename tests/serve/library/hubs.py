"""A hub that a library reads, and what it loads from there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from deltahub_serve.library import Library

from deltahub import Base, Delta, Hub, Mask, Resident, TaskModel
from deltahub.heads import load_tokenizer
from tests.tasks import random_task


class Loads:
    """Counts what is loaded, by task and digest."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.tokenizer = load_tokenizer(resident.base)
        self.counts: Counter[str] = Counter()

    def __call__(self, delta: Delta) -> TaskModel:
        self.counts[delta.digest] += 1
        return TaskModel(self.resident, self.tokenizer, delta)


def push(hub: Hub, base: Base, mask: Mask, seed: int, task: str = "sst2", tags: tuple[str, ...] = ()) -> Delta:
    delta = random_task(base, mask, kind="text-classification", seed=seed, task=task)
    hub.push(delta, tags=tags)
    return delta


def version(library: Library, name: str) -> int:
    return library.get(name).result(60).version


def damage(hub: Hub, reference: str, folder: Path) -> None:
    blob = hub.version(reference).sections[-1].data.blob
    path = next(path for path in folder.rglob(f"*{blob[2:]}*"))
    path.write_bytes(b"x" * path.stat().st_size)


class Counted:
    """A store that counts what is read of it, by the first part of the method and key."""

    def __init__(self, store: object) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        method = getattr(self.store, name)

        def call(*arguments: object, **more: object) -> object:
            self.calls[f"{name} {str(arguments[0]).partition('/')[0]}"] += 1
            return method(*arguments, **more)

        return call if callable(method) else method
