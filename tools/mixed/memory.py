"""What many tasks that are ready to be mixed take, by formula and measured."""

from __future__ import annotations

import gc

import psutil
import torch

from deltahub.mixing import Mixable, Mixer
from mixed import checking
from mixed.made import Made

ROWS = 16


def measure(made: Made, count: int) -> dict[str, int]:
    """Bytes. To be called before anything else has left free memory behind, which the tasks would take first.

    ``process`` and ``device`` are by how much the process's resident memory and a GPU's allocated bytes grew with the
    tasks, ``process_shared`` and ``device_shared`` before that with a mixer.

    Raises:
        checking.WrongError: a task that was kept gives a wrong answer.
    """
    with torch.inference_mode():
        _pass(made, made.mixer, 2)  # what is made once in a process is made before the first look
        before = _held(made)
        mixer = Mixer(made.resident, made.tokenizer)
        shared = _held(made)
        kept = _pass(made, mixer, count)
        after = _held(made)
    values = count * sum(segment.index.numel() * segment.flat.itemsize for segment in made.resident.segments)
    heads = 2 * sum(tensor.nbytes for task in kept for tensor in task.model.delta.head.values())
    return {
        "tasks": count, "k": made.mask.k, "values": values, "heads": heads, "pattern": mixer.nbytes,
        "formula": values + heads + mixer.nbytes,
        "counted": sum(task.model.nbytes + task.changes.nbytes for task in kept) + mixer.nbytes,
        "process": after["process"] - shared["process"], "device": after["device"] - shared["device"],
        "process_shared": shared["process"] - before["process"], "device_shared": shared["device"] - before["device"],
    }  # fmt: skip


def _pass(made: Made, mixer: Mixer, count: int) -> list[Mixable]:
    """So many tasks, admitted one after the other; some of them, from all over, answer a batch."""
    kept = [
        mixer.admit(model)
        for seed in range(count)
        for model in made.models(made.resident, [made.delta(seed, "masked")])
    ]
    some = [kept[row * count // ROWS] for row in range(ROWS)]
    encoded = made.encoded(some[0].model, ROWS, 16)
    found = checking.of_answers(row.answer for row in mixer.run(list(zip(some, encoded, strict=True))))
    models = [task.model for task in some]
    checking.check("a task that was kept", found, checking.swapped(made.resident, models, encoded))
    return kept


def _held(made: Made) -> dict[str, int]:
    gc.collect()
    device = torch.cuda.memory_allocated(made.device) if made.device.type == "cuda" else 0
    return {"process": psutil.Process().memory_info().rss, "device": device}
