"""`deltahub train` and `deltahub train-many`."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common
from deltahub.names import TEXT_KINDS
from deltahub.tuning.methods import METHODS
from deltahub.tuning.settings import CHOICES, Settings

if TYPE_CHECKING:
    from deltahub.delta import Delta

_MEANINGS = {
    "epochs": "passes over the data",
    "lr": "peak learning rate of what is trained of the base",
    "head_lr": "peak learning rate of the head",
    "batch_size": "rows in one forward pass",
    "accumulate": "forward passes per step",
    "max_length": "tokens per text, longer ones are cut",
    "warmup": "share of the steps in which the rates rise",
    "weight_decay": "decoupled, of what is trained of the base",
    "max_grad_norm": "gradients are scaled down to this norm; 0 leaves them",
    "seed": "of the head, the row order and dropout",
    "head": "native: of the model's class; linear: one layer on pooled states; shared: inner layers as in all tasks",
    "pooling": "for linear heads and embeddings",
    "class_weights": "balanced weighs rare classes up",
    "precision": "bf16 computes under autocast",
    "bottleneck": "inner size of hiwi's adapters",
    "activation": "of hiwi's adapters",
}
_DEFAULTS = {"lr": "the method's own", "pooling": "what suits the base", "max_length": "128, or what the base takes"}
_TYPES = {"lr": float, "pooling": str, "max_length": int}  # their default is None


def add(commands: common.Commands) -> None:
    about = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    train = common.command(
        commands, "train", _train, "fine-tune a task on a base and write it as a delta",
        "Reads texts and labels from JSONL, CSV, TSV or Parquet; keeps the epoch that does best on the validation "
        f"rows. Methods, several joined by +, are: {about}.",
    )  # fmt: skip
    train.add_argument("base", metavar="BASE", help="the base: folder, .safetensors file or model id")
    common.revision_option(train)
    train.add_argument("--data", metavar="FILE", type=Path, required=True, help=".jsonl, .csv, .tsv or .parquet")
    train.add_argument("--validation", metavar="FILE", type=Path, help="rows to choose by (default: a tenth of --data)")
    train.add_argument("--test", metavar="FILE", type=Path, help="rows to score the result on, and for nothing else")
    train.add_argument(
        "--kind", choices=TEXT_KINDS, default=TEXT_KINDS[0], help=f"what is learned (default: {TEXT_KINDS[0]})"
    )
    train.add_argument("--text", metavar="COLUMN", default="text", help="column of the texts (default: text)")
    train.add_argument("--text-pair", metavar="COLUMN", help="column of the second texts, for pairs")
    train.add_argument("--label", metavar="COLUMN", default="label", help="column of the labels (default: label)")
    train.add_argument("--task", help="name of the task (default: the name of the output file)")
    train.add_argument("--method", default="pafi", help="what is trained, see above (default: pafi)")
    train.add_argument("--mask", metavar="FILE", type=Path, help="mask file (default: the method's own at 0.5 %%)")
    defaults = Settings()
    for name, meaning in _MEANINGS.items():
        default = getattr(defaults, name)
        shown = _DEFAULTS.get(name, default)
        train.add_argument(
            f"--{name.replace('_', '-')}", default=default, type=_TYPES.get(name) or type(default),
            choices=[choice for choice in CHOICES.get(name, ()) if choice] or None,
            metavar=None if name in CHOICES else "N", help=f"{meaning} (default: {shown})",
        )  # fmt: skip
    train.add_argument("--checkpointing", action="store_true", help="recompute activations, to save memory")
    train.add_argument(
        "--layers", metavar="GLOB", nargs="+", default=list(defaults.layers),
        help="base tensors that hiwi may adapt (default: all feed-forward ones)",
    )  # fmt: skip
    train.add_argument(
        "--state", metavar="DIR", type=Path,
        help="folder that keeps each epoch, and what an interrupted run has done (default: OUTPUT.state)",
    )  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on from --state; gives what an unbroken run gives")
    train.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    common.output_option(train, "the .delta file")

    many = common.command(
        commands, "train-many", _train_many, "train, push and compare all tasks of a YAML file",
        "The file names a base, a hub if the tasks shall be pushed, `defaults`, and `tasks` with their `data`. Tasks "
        "that are done are not trained again, and one that fails does not stop the others.",
    )  # fmt: skip
    many.add_argument("config", metavar="FILE", type=Path, help="the YAML file; paths in it are relative to it")
    many.add_argument("--base", metavar="BASE", help="in place of the file's base")
    many.add_argument("--hub", metavar="URL", help="in place of the file's hub")
    many.add_argument("--only", metavar="GLOB", nargs="+", default=["*"], help="names of the tasks to train")
    many.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    common.json_option(many)


def _train(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.names import check_task
    from deltahub.tuning import data
    from deltahub.tuning.train import train

    task = check_task(options.task or options.output.stem.lower())
    settings = Settings(
        **{item.name: getattr(options, item.name) for item in fields(Settings) if item.name != "layers"},
        layers=tuple(options.layers),
    )
    columns = {"kind": options.kind, "text": options.text, "text_pair": options.text_pair, "label": options.label}
    rows, validation = data.load(options.data, options.validation, **columns, seed=options.seed)
    test = data.read(options.test, **columns, names=rows.names) if options.test else None
    base = common.open_base(options.base, options.revision)
    state: Path = options.state or options.output.with_name(f"{options.output.name}.state")
    if state.exists() and not state.is_dir():
        raise UsageError(f"--state {state}", expected="a folder", got="a file")
    if (state / "run.json").exists() and not options.resume:
        raise UsageError(f"{state} holds an earlier run", hint="go on with it by --resume, or delete it to start anew")
    ours = not state.exists()
    try:
        with common.progress("train", "step") as show:
            trained = train(
                base, rows, validation, test=test, task=task, mask=common.load_mask(options.mask),
                method=options.method, settings=settings, state=state, resume=options.resume, device=options.device,
                say=common.words, progress=show,
            )  # fmt: skip
    except Exception:
        if ours and state.is_dir() and not any(state.glob("checkpoint-*")):
            shutil.rmtree(state)  # nothing was done yet that could be gone on with
        raise
    path = _save(trained.delta, options.output)
    if options.state is None:
        shutil.rmtree(state, ignore_errors=True)
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


def _train_many(options: argparse.Namespace) -> None:
    from deltahub.errors import DataError
    from deltahub.tuning.many import HEAD, train_many
    from deltahub.tuning.plan import read_plan

    plan = read_plan(options.config, base=options.base, hub=options.hub, only=options.only)
    base = common.open_base(plan.base, plan.revision)
    with common.progress("train", "step") as show:
        done = train_many(plan, base, device=options.device, say=common.words, progress=show)
    if options.json:
        common.print_json([vars(row) for row in done])
    else:
        common.print_table(HEAD, (row.cells() for row in done))
    if failed := [row.task for row in done if row.error]:
        raise DataError(f"{len(failed)} of {len(done)} tasks failed: {', '.join(failed)}", hint="their lines say why")
