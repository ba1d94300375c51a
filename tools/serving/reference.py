"""What each task version gives for each text alone, in a process of its own on a model of its own.

Called with a base, a hub, a number of torch threads and the files of questions and answers, this module is that
process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltahub.answers import Answer, Embedding, Prediction, WordLabels


@dataclass(frozen=True)
class Plain:
    """An answer of any kind: what must be the same, and the numbers.

    Attributes:
        words: in their order.
        labels: chosen ones, where the numbers are theirs alone.
        numbers: scores, or the vector.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """The right answer and the digest of the version that gives it."""

    digest: str
    plain: Plain


Key = tuple[str, str]
"""``task@3`` and a text."""


def plain(answer: Mapping[str, Any]) -> Plain:
    """From an answer's ``as_dict()``."""
    if "embedding" in answer:
        return Plain((), (), tuple(answer["embedding"]))
    if "words" in answer:
        words = answer["words"]
        return Plain(
            tuple(f"{word['index']} {word['word']} {word['start']} {word['end']}" for word in words),
            tuple(word["label"] for word in words), tuple(word["score"] for word in words),
        )  # fmt: skip
    return Plain(tuple(answer["scores"]), (), tuple(answer["scores"].values()))


def compute(base: str, hub: str, threads: int, keys: Iterable[Key]) -> dict[Key, Known]:
    """The right answers, each from a pass with this text alone."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for reference, text in dict.fromkeys(keys):
        wanted[reference].append(text)
    with tempfile.TemporaryDirectory() as name:
        asked, found = Path(name, "asked.json"), Path(name, "found.json")
        asked.write_text(json.dumps(wanted), encoding="utf-8")
        subprocess.run([sys.executable, __file__, base, hub, str(threads), str(asked), str(found)], check=True)
        answers = json.loads(found.read_text(encoding="utf-8"))
    return {
        (reference, text): Known(answers[reference]["digest"], plain(answer))
        for reference, texts in wanted.items()
        for text, answer in zip(texts, answers[reference]["answers"], strict=True)
    }


def _compute(base_source: str, hub_url: str, wanted: Mapping[str, list[str]]) -> dict[str, Any]:
    from deltahub import Base, Hub, Mask, Resident, TaskModel
    from deltahub.heads import load_tokenizer

    base, hub = Base.open(base_source), Hub.open(hub_url)
    masks = hub.masks()
    mask = Mask.rebuild(base, hub.pull(next(iter(wanted))).manifest.mask) if masks else None  # type: ignore[arg-type]
    resident, tokenizer = Resident.load(base, mask), load_tokenizer(base)
    found = {}
    for reference, texts in wanted.items():
        delta = hub.pull(reference)
        resident.swap(delta)
        model = TaskModel(resident, tokenizer, delta)
        answers: list[Answer] = [model.run([row])[0] for row in model.prepare(texts)]
        assert all(isinstance(answer, Prediction | WordLabels | Embedding) for answer in answers)
        found[reference] = {"digest": delta.digest, "answers": [answer.as_dict() for answer in answers]}
    return found


def main() -> None:
    import torch

    base, hub, threads, asked, out = sys.argv[1:]
    torch.set_num_threads(int(threads))
    wanted = json.loads(Path(asked).read_text(encoding="utf-8"))
    Path(out).write_text(json.dumps(_compute(base, hub, wanted)), encoding="utf-8")


if __name__ == "__main__":
    main()
