"""Mask build with base digest, against hashing the same bytes with hashlib on as many threads.

The checkpoint is made: fp32, RoBERTa-large's shapes (354 M parameters), sharded in three. Peak memory is taken in a
fresh process that only builds the mask. The mask is checked against a full sort of (|w| bits, position).
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deltahub.checkpoint import Base
from deltahub.mask import Mask

sys.path.insert(0, str(Path(__file__).parent))
import common

_MEMORY = """
import sys
from pathlib import Path
from deltahub.checkpoint import Base
from deltahub.mask import Mask
def field(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
base = Base.open(sys.argv[1], cache=Path(sys.argv[2]))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is resident now
before = field("VmRSS")
Mask.build(base)
print(field("VmHWM") - before)
"""


def hash_all(folder: Path) -> None:
    """The floor: every file's bytes through sha256, in as many pieces and threads as the machine has cores."""
    threads = os.cpu_count() or 1

    def job(piece: tuple[Path, int, int]) -> None:
        path, start, end = piece
        sha, buffer = hashlib.sha256(), memoryview(bytearray(1 << 19))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                got = file.readinto(buffer[: end - start])
                sha.update(buffer[:got])
                start += got

    pieces = []
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        pieces += [(path, size * n // (4 * threads), size * (n + 1) // (4 * threads)) for n in range(4 * threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(job, pieces))


def by_full_sort(base: Base, k: int) -> np.ndarray:
    keys, positions = [], []
    for tensor in base.space.scope("blocks"):
        keys.append(base.read(tensor.name).bits & np.uint32(0x7FFFFFFF))
        positions.append(np.arange(tensor.offset, tensor.offset + tensor.size))
    key, position = np.concatenate(keys), np.concatenate(positions)
    cut = np.partition(key, k - 1)[k - 1]
    close = np.flatnonzero(key <= cut)
    order = np.lexsort((position[close], key[close]))
    found: np.ndarray = np.sort(position[close][order[:k]])
    return found


def main() -> None:
    parsed = common.options(__doc__).parse_args()
    layers, width, vocabulary, rounds = (4, 256, 8000, 3) if parsed.quick else (24, 1024, 50265, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = common.write_checkpoint(Path(name), common.encoder_shapes(layers, width, vocabulary), 3)
        masks = []

        def build() -> None:  # a fresh file time each round, so that no digest is remembered
            for path in folder.glob("*.safetensors"):
                os.utime(path)
            masks.append(Mask.build(Base.open(folder, cache=folder / "cache")))

        times = common.alternate({"hashlib": lambda: hash_all(folder), "digest and mask": build}, rounds)
        for path in folder.glob("*.safetensors"):
            os.utime(path)
        command = [sys.executable, "-c", _MEMORY, str(folder), str(folder / "cache")]
        memory = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = Base.open(folder, cache=folder / "cache")
        assert np.array_equal(masks[-1].indices, by_full_sort(base, masks[-1].k))
        largest = max(tensor.size * 4 for tensor in base.space.tensors)
    result = {
        "parameters": base.space.size, "k": masks[-1].k, "threads": os.cpu_count(),
        "hash_seconds": statistics.median(times["hashlib"]),
        "build_seconds": statistics.median(times["digest and mask"]),
        "ratio": common.ratio(times, "digest and mask", "hashlib"),
        "extra_memory": memory, "largest_tensor": largest, "memory_ratio": memory / largest,
    }  # fmt: skip
    if parsed.json:
        common.print_json(result)
        return
    rows = [
        ["hashlib alone", f"{result['hash_seconds']:.3f} s", "1.00"],
        ["digest and mask", f"{result['build_seconds']:.3f} s", f"{result['ratio']:.2f}"],
    ]
    common.show(
        f"{base.space.size:,} fp32 parameters, k = {result['k']:,}, {os.cpu_count()} threads",
        ["", "time", "ratio"],
        rows,
    )
    print(f"extra memory {memory / 1e6:.0f} MB, {memory / largest:.2f} of the largest tensor; equals a full sort")


if __name__ == "__main__":
    main()
