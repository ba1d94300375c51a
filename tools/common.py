"""What the benchmarks share: alternating timing, tables, the made checkpoint."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deltahub import tensorfile
from deltahub.rawtensor import RawTensor


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: shows that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def alternate(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; all jobs take turns, so that a slow moment of the machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for name in jobs:
        jobs[name]()  # warm-up
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """Median of the round-by-round ratios."""
    return statistics.median(a / b for a, b in zip(times[ours], times[peer], strict=True))


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [list(head)] + [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        line = row[0].ljust(widths[0]) + "".join(
            "  " + cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)
        )
        print(line.rstrip())


def print_json(document: object) -> None:
    print(json.dumps(document, indent=1))


def encoder_shapes(layers: int, width: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a RoBERTa-shaped encoder; 24, 1024, 50265 gives the 354 M parameters of the large one."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, width),
        "embeddings.position_embeddings.weight": (514, width),
    }
    for layer in range(layers):
        linear = {
            "attention.self.query": (width, width), "attention.self.key": (width, width),
            "attention.self.value": (width, width), "attention.output.dense": (width, width),
            "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width),
        }  # fmt: skip
        for name, shape in linear.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (width,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (width,)
    return shapes


def write_checkpoint(folder: Path, shapes: Mapping[str, tuple[int, ...]], shards: int) -> Path:
    """Normally distributed fp32 tensors in ``shards`` files with their index."""
    rng = np.random.default_rng(0)
    names = list(shapes)
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        tensors = {name: _normal(rng, shapes[name]) for name in part}
        with (folder / file).open("wb") as out:
            for piece in tensorfile.dump(tensors, {"format": "pt"}):
                out.write(piece)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> RawTensor:
    values = rng.standard_normal(int(np.prod(shape)), dtype=np.float32) * np.float32(0.02)
    return RawTensor("F32", shape, values.view(np.uint8))
