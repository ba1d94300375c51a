"""`deltahub train` and `deltahub predict`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common
from deltahub.tuning.settings import Settings

if TYPE_CHECKING:
    from deltahub.delta import Delta


def add(commands: common.Commands) -> None:
    train = common.command(
        commands, "train", _train, "fine-tune a task on a base and write it as a delta",
        "Reads texts and labels from JSONL, CSV or TSV; keeps the epoch that does best on the validation rows.",
    )  # fmt: skip
    train.add_argument("base", metavar="BASE", help="the base: folder, .safetensors file or model id")
    common.revision_option(train)
    train.add_argument("--data", metavar="FILE", type=Path, required=True, help=".jsonl, .csv or .tsv to train on")
    train.add_argument("--validation", metavar="FILE", type=Path, help="rows to choose by (default: a tenth of --data)")
    train.add_argument("--text", metavar="COLUMN", default="text", help="column of the texts (default: text)")
    train.add_argument("--label", metavar="COLUMN", default="label", help="column of the labels (default: label)")
    train.add_argument("--task", help="name of the task (default: the name of the output file)")
    train.add_argument(
        "--method",
        default="pafi",
        choices=["pafi", "random", "bitfit", "head"],
        help="pafi (the mask; default), random (a random mask), bitfit (all biases), head (nothing else)",
    )
    train.add_argument("--mask", metavar="FILE", type=Path, help="mask file (default: the method's own at 0.5 %%)")
    defaults = Settings()
    meanings = {
        "epochs": "passes over the data", "lr": "peak learning rate of the masked values or biases",
        "head_lr": "peak learning rate of the head", "batch_size": "rows per step",
        "max_length": "tokens per text, longer ones are cut", "seed": "of the head, the row order and dropout",
    }  # fmt: skip
    for name, meaning in meanings.items():
        default = getattr(defaults, name)
        train.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar="N",
            help=f"{meaning} (default: {default})",
        )  # fmt: skip
    train.add_argument(
        "--state", metavar="DIR", type=Path, help="new or empty folder that keeps each epoch, for --resume"
    )
    train.add_argument("--resume", action="store_true", help="go on from --state; gives what an unbroken run gives")
    train.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    common.output_option(train, "the .delta file")

    predict = common.command(
        commands, "predict", _predict, "classify or embed texts with a task, in one process and without a server",
        "Texts come from the arguments, or as plain lines (not JSON) from standard input.",
    )  # fmt: skip
    predict.add_argument(
        "task", metavar="TASK|FILE", help="a task of the hub (TASK, TASK@N, TASK:TAG) or a .delta file"
    )
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="texts (default: lines of standard input)")
    common.base_option(predict, purpose="the base that the task was made from")
    common.mask_option(predict)
    predict.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts per pass (default: 32)")
    common.hub_option(predict)
    common.json_option(predict)


def _train(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.names import check_task
    from deltahub.tuning import data
    from deltahub.tuning.train import train

    task = check_task(options.task or options.output.stem.lower())
    if options.resume and options.state is None:
        raise UsageError("--resume", expected="--state DIR, the folder to go on from")
    settings = Settings(
        epochs=options.epochs, lr=options.lr, head_lr=options.head_lr, batch_size=options.batch_size,
        max_length=options.max_length, seed=options.seed,
    )  # fmt: skip
    rows, validation = data.load(
        options.data, options.validation, text=options.text, label=options.label, seed=options.seed
    )
    base = common.open_base(options.base, options.revision)
    with common.progress("train", "step") as show:
        trained = train(
            base, rows, validation, task=task, mask=common.load_mask(options.mask), method=options.method,
            settings=settings, state=options.state, resume=options.resume, device=options.device,
            say=common.words, progress=show,
        )  # fmt: skip
    path = _save(trained.delta, options.output)
    common.words(f"{path}: {common.size(path.stat().st_size)}; push it with `deltahub push`")
    print(trained.delta.digest)


def _save(delta: Delta, output: Path) -> Path:
    """A training is not lost for want of room: what cannot be written where it should goes to the temporary folder."""
    import tempfile

    from deltahub.errors import StoreError

    try:
        return delta.save(output)
    except StoreError as error:
        fallback = Path(tempfile.gettempdir()) / f"{delta.task}-{delta.digest[:16]}.delta"
        common.words(f"{error}; the trained task is kept in {fallback}")
        return delta.save(fallback)


def _lines() -> list[str]:
    """Standard input, a text a line."""
    from deltahub.errors import UsageError

    try:
        return sys.stdin.buffer.read().decode().splitlines() if sys.stdin else []
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 ({error.reason} at byte {error.start})") from None


def _predict(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.predict import Predictor

    delta = common.load_delta(options.task, options)
    texts = options.texts or _lines()
    if not texts:
        raise UsageError("no text", expected="arguments, or lines on standard input")
    if options.batch_size < 1:
        raise UsageError("--batch-size", expected="1 or more", got=options.batch_size)
    predictor = Predictor(common.open_base(options.base, options.revision), common.find_mask(options, delta))
    predictor.load(delta)
    if delta.manifest.kind == "embeddings":
        common.print_json([row.tolist() for row in predictor.embed(texts, batch_size=options.batch_size)])
        return
    found = predictor.classify(texts, batch_size=options.batch_size)
    if options.json:
        common.print_json([{"text": text, **asdict(item)} for text, item in zip(texts, found, strict=True)])
        return
    rows = ([item.label, f"{item.score:.3f}", text[:100]] for text, item in zip(texts, found, strict=True))
    common.print_table(["label", "score", "text"], rows)
