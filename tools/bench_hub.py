"""Push + verified pull of one task, against copy + fsync + sha256 of the same bytes; and a hub of 10,000 tasks.

The task has 1.77 M fp32 values as training leaves them (small magnitudes, moved a little), the 0.5 % of a 355 M base.
The pulled file is compared byte by byte. The large hub is made through the public push; listing and pushing are timed
against an empty hub.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deltahub.delta import Delta
from deltahub.hub import Hub
from deltahub.manifest import BaseRef, Manifest, MaskRef, Plain
from deltahub.rawtensor import RawTensor
from deltahub.transfer import pull_file, push_file

sys.path.insert(0, str(Path(__file__).parent))
import common


def made_delta(task: str, k: int, seed: int) -> Delta:
    rng = np.random.default_rng(seed)
    own = np.abs(rng.standard_normal(8 * k).astype(np.float32))
    own = np.sort(own)[:k] * np.float32(0.02) * np.where(rng.random(k) < 0.5, -1, 1).astype(np.float32)
    values = own + rng.standard_normal(k).astype(np.float32) * np.float32(3e-3)
    recipe: dict[str, Plain] = {"name": "smallest-magnitude", "density": 0.005, "scope": "blocks"}
    manifest = Manifest(task, "embeddings", BaseRef("1" * 64, "made"), MaskRef("2" * 64, k, 200 * k, recipe))
    return Delta(manifest, {"values": RawTensor("F32", (k,), values.astype(np.float32).view(np.uint8))})


def copy_sync_hash(source: Path, target: Path) -> None:
    data = source.read_bytes()
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    hashlib.sha256(target.read_bytes()).hexdigest()


def transfer(folder: Path, k: int, rounds: int) -> dict[str, float]:
    files = [made_delta("task", k, seed).save(folder / f"{seed}.delta") for seed in range(rounds + 1)]
    turn = {"ours": 0, "floor": 0}
    hub = Hub.open(folder / "hub")

    def ours() -> None:
        source = files[turn["ours"]]
        turn["ours"] += 1
        push_file(source, hub)
        out = folder / f"pulled{turn['ours']}.delta"
        pull_file(hub, "task", out)

    def floor() -> None:
        copy_sync_hash(files[turn["floor"]], folder / f"copy{turn['floor']}")
        turn["floor"] += 1

    times = common.alternate({"copy + fsync + sha256": floor, "push + pull": ours}, rounds)
    for number, source in enumerate(files):
        assert (folder / f"pulled{number + 1}.delta").read_bytes() == source.read_bytes()
    return {
        "values": k, "file_bytes": files[0].stat().st_size,
        "stored_bytes": hub.version("task").stored,
        "floor_ms": 1e3 * statistics.median(times["copy + fsync + sha256"]),
        "push_pull_ms": 1e3 * statistics.median(times["push + pull"]),
        "ratio": common.ratio(times, "push + pull", "copy + fsync + sha256"),
    }  # fmt: skip


def many(folder: Path, tasks: int, rounds: int) -> dict[str, float]:
    large, empty = Hub.open(folder / "large"), Hub.open(folder / "empty")
    delta = made_delta("task", 64, 0)
    for number in range(tasks):
        large.push(delta.with_manifest(task=f"task-{number:05d}"), tags=("prod",) if number % 10 == 0 else ())
    listing = []
    for _ in range(5):
        start = time.perf_counter()
        assert len(large.tasks()) == tasks
        listing.append(time.perf_counter() - start)
    fresh = iter(made_delta("new-task", 64, seed) for seed in range(1, 10 * rounds))
    times = common.alternate(
        {"large": lambda: large.push(next(fresh)), "empty": lambda: empty.push(next(fresh))}, rounds
    )
    return {
        "tasks": tasks, "list_seconds": statistics.median(listing),
        "push_ms": 1e3 * statistics.median(times["large"]), "push_to_empty_ms": 1e3 * statistics.median(times["empty"]),
        "push_ratio": common.ratio(times, "large", "empty"),
    }  # fmt: skip


def main() -> None:
    parsed = common.options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        moved = transfer(Path(name), 100_000 if parsed.quick else 1_770_000, 5 if parsed.quick else 15)
        listed = many(Path(name), 300 if parsed.quick else 10_000, 11 if parsed.quick else 31)
    if parsed.json:
        common.print_json({"transfer": moved, "large_hub": listed})
        return
    common.show(
        f"{moved['values']:,} fp32 values, {moved['file_bytes']:,} bytes, stored as {moved['stored_bytes']:,}",
        ["", "ms", "ratio"],
        [
            ["copy + fsync + sha256", f"{moved['floor_ms']:.1f}", "1.00"],
            ["push + verified pull", f"{moved['push_pull_ms']:.1f}", f"{moved['ratio']:.2f}"],
        ],
    )
    common.show(
        f"a hub of {listed['tasks']:,} tasks",
        ["list", "push", "push to an empty hub", "ratio"],
        [
            [f"{listed['list_seconds']:.2f} s", f"{listed['push_ms']:.1f} ms", f"{listed['push_to_empty_ms']:.1f} ms",
             f"{listed['push_ratio']:.2f}"],
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
