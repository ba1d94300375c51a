"""Swap and restore, against one bare index_put_ of the same values, PEFT LoRA merge + unmerge, and load_state_dict.

Encoders of 22.7 M, 355 M and 1.5 B parameters (fp32, random), mask density 0.5 %. LoRA is r = 8 on all linear layers.
The cold swap comes right after a forward pass, as in a server, whose weights have driven the values out of the caches.
After the timing the base is compared bit by bit. The largest size needs about 20 GB; --sizes picks.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from deltahub.backbone import load_backbone, quiet
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, narrow
from deltahub.resident import Resident

sys.path.insert(0, str(Path(__file__).parent))
import common

SIZES = {"22.7M": (6, 384, 30522), "355M": (24, 1024, 50265), "1.5B": (30, 2048, 50257), "2M": (4, 128, 8000)}


def config(size: str) -> BertConfig:
    layers, width, vocabulary = SIZES[size]
    return BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip


def write(folder: Path, size: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with quiet():
        BertModel(config(size)).to(dtype).save_pretrained(folder)


def task(base: Base, mask: Mask, seed: int) -> Delta:
    own = base.gather(mask.indices)
    noise = np.random.default_rng(seed).standard_normal(mask.k).astype(np.float32) * np.float32(1e-3)
    values = RawTensor.of_bits(own.dtype, (mask.k,), narrow(own.float32() + noise, own.dtype))
    return Delta(Manifest(f"task{seed}", "embeddings", base.ref, mask.ref), {"values": values})


def measure(size: str, dtype: torch.dtype, rounds: int) -> dict[str, float | int | str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, size, dtype)
        base = Base.open(folder, cache=folder / "cache")
        mask = Mask.build(base)
        peers = _lora_and_load(folder, rounds)
        resident = Resident(load_backbone(base), base, mask)
        own = resident.values()
        tasks = [task(base, mask, seed) for seed in (1, 2)]
        for item in tasks:
            resident.swap(item)
        prepared = [resident.prepare(item) for item in tasks]
        turn = 0

        def swap() -> None:
            nonlocal turn
            turn += 1
            resident.swap(prepared[turn % 2])

        segment = resident.segments[0]
        plain = tasks[0].values
        assert plain is not None
        jobs: dict[str, Callable[[], object]] = {
            "index_put": lambda: segment.flat.index_put_((segment.index,), plain),
            "swap": swap,
            "restore": resident.restore,
        }
        times = common.alternate(jobs, rounds)
        cold = _cold({name: jobs[name] for name in ("index_put", "swap")}, resident.module, rounds)
        swap()
        assert resident.values() == tasks[turn % 2].tensors["values"]
        resident.restore()
        assert resident.values() == own
        return {
            "size": size, "dtype": str(dtype).removeprefix("torch."), "parameters": base.space.size, "k": mask.k,
            "index_put_ms": 1e3 * statistics.median(times["index_put"]),
            "swap_ms": 1e3 * statistics.median(times["swap"]),
            "restore_ms": 1e3 * statistics.median(times["restore"]),
            "swap_ratio": common.ratio(times, "swap", "index_put"),
            "restore_ratio": common.ratio(times, "restore", "index_put"),
            "cold_swap_ms": 1e3 * statistics.median(cold["swap"]),
            "cold_swap_ratio": common.ratio(cold, "swap", "index_put"),
            "forward_ms": 1e3 * statistics.median(cold["forward"]),
            **peers,
        }  # fmt: skip


def _cold(jobs: dict[str, Callable[[], object]], module: torch.nn.Module, rounds: int) -> dict[str, list[float]]:
    """Seconds of each job right after a forward pass of one text of 16 tokens, as a server has it, and of the pass."""
    tokens = torch.arange(16).reshape(1, 16)
    times: dict[str, list[float]] = {name: [] for name in (*jobs, "forward")}
    for _ in range(rounds):
        for name, job in jobs.items():
            begin = time.perf_counter()
            with torch.inference_mode():
                module(input_ids=tokens)
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
            times["forward"].append(start - begin)
    return times


def _lora_and_load(folder: Path, rounds: int) -> dict[str, float]:
    """PEFT's merge + unmerge, and load_state_dict of a whole checkpoint in memory; milliseconds."""
    from peft import LoraConfig, get_peft_model

    with quiet():
        model = BertModel.from_pretrained(folder, dtype="auto")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loading = common.alternate({"load": lambda: model.load_state_dict(state)}, max(3, rounds // 8))
    with quiet():
        peft = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))

    def merge() -> None:
        peft.merge_adapter()
        peft.unmerge_adapter()

    merging = common.alternate({"lora": merge}, max(3, rounds // 8))
    return {
        "load_state_dict_ms": 1e3 * statistics.median(loading["load"]),
        "lora_merge_unmerge_ms": 1e3 * statistics.median(merging["lora"]),
    }


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["22.7M", "355M", "1.5B"])
    parsed = parser.parse_args()
    sizes = ["2M"] if parsed.quick else parsed.sizes
    found = []
    for size in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            found.append(measure(size, dtype, 21 if parsed.quick else 41))
            gc.collect()
    if parsed.json:
        common.print_json(found)
        return
    rows = [
        [
            f"{row['size']} {row['dtype']}", row["k"], f"{row['index_put_ms']:.2f}",
            f"{row['swap_ms']:.2f} ({row['swap_ratio']:.2f} x)",
            f"{row['restore_ms']:.2f} ({row['restore_ratio']:.2f} x)",
            f"{row['cold_swap_ms']:.2f} ({row['cold_swap_ratio']:.2f} x)", f"{row['forward_ms']:.1f}",
            f"{row['lora_merge_unmerge_ms']:.1f}", f"{row['load_state_dict_ms']:.1f}",
        ]
        for row in found
    ]  # fmt: skip
    head = [
        "model",
        "values",
        "index_put_",
        "swap",
        "restore",
        "cold swap",
        "forward",
        "LoRA merge + unmerge",
        "load_state_dict",
    ]
    common.show("milliseconds, medians; in brackets the ratio to index_put_", head, rows)


if __name__ == "__main__":
    main()
