"""Commands on deltas: extract, materialize, inspect, diff, merge."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common
from deltahub.names import KINDS

if TYPE_CHECKING:
    from deltahub.delta import Delta


def add(commands: common.Commands) -> None:
    _add_extract(commands)
    materialize = common.command(
        commands, "materialize", _materialize, "write a task as a full checkpoint that from_pretrained loads"
    )
    materialize.add_argument("task", metavar="TASK|FILE", help="a task of the hub (TASK, TASK@N, TASK:TAG) or a .delta")
    materialize.add_argument("base", metavar="BASE", help="the base that it was made from")
    common.revision_option(materialize)
    common.mask_option(materialize)
    materialize.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="a new folder")
    common.signature_option(materialize)
    common.hub_option(materialize)

    inspect = common.command(commands, "inspect", _inspect, "print what a delta holds")
    inspect.add_argument("task", metavar="TASK|FILE", help="a task of the hub or a .delta file")
    common.signature_option(inspect)
    common.hub_option(inspect)
    common.json_option(inspect)

    diff = common.command(
        commands, "diff", _diff, "compare two tasks: cosine, sign agreement and largest movers per tensor"
    )
    diff.add_argument("a", metavar="A", help="a task of the hub or a .delta file")
    diff.add_argument("b", metavar="B", help="another one")
    common.base_option(diff, purpose="the base of both; changes are measured from it")
    common.mask_option(diff)
    diff.add_argument("--top", type=int, default=12, help="tensors to print (default: 12)")
    common.signature_option(diff)
    common.hub_option(diff)
    common.json_option(diff)

    merge = common.command(commands, "merge", _merge, "combine tasks of one mask into one delta")
    merge.add_argument("tasks", metavar="TASK|FILE", nargs="+", help="tasks of the hub or .delta files")
    merge.add_argument("--weights", metavar="W", type=float, nargs="+", help="one per task, of sum 1 (default: equal)")
    merge.add_argument("--method", default="average", help="average: the weighted mean, the only one so far")
    merge.add_argument("--task", help="name of the result (default: the names joined)")
    merge.add_argument("--head", metavar="TASK", help="keep this task's head (default: average equal heads)")
    common.output_option(merge, "the .delta file")
    common.signature_option(merge)
    common.hub_option(merge)


def _add_extract(commands: common.Commands) -> None:
    extract = common.command(
        commands, "extract", _extract, "make a delta of a fine-tuned checkpoint",
        "Exact when only masked, --dense and head parameters changed; refused otherwise, unless --lossy.",
    )  # fmt: skip
    extract.add_argument("base", metavar="BASE", help="the base: folder, .safetensors file or model id")
    extract.add_argument("finetuned", metavar="FINETUNED", help="the fine-tuned checkpoint: folder, file or model id")
    common.revision_option(extract)
    extract.add_argument("--task", required=True, help="name of the task in a hub")
    extract.add_argument("--mask", metavar="FILE", type=Path, help="mask file (default: built with --density)")
    extract.add_argument(
        "--density", type=float, default=0.005, help="of the mask built without --mask (default: 0.005)"
    )
    extract.add_argument("--no-mask", action="store_true", help="a delta of --dense tensors and head only")
    extract.add_argument("--dense", metavar="GLOB", action="append", default=[], help="base tensors to store whole")
    extract.add_argument("--lossy", action="store_true", help="keep what the mask can hold and say what was lost")
    extract.add_argument("--kind", help=f"one of {', '.join(KINDS)} (default: from the config)")
    extract.add_argument("--licence", help="SPDX expression for the manifest")
    common.output_option(extract, "the .delta file")


def _extract(options: argparse.Namespace) -> None:
    from deltahub.convert.extract import extract
    from deltahub.mask import Mask

    base = common.open_base(options.base, options.revision)
    mask = common.load_mask(options.mask)
    if mask is None and not options.no_mask:
        with common.progress("mask") as show:
            mask = Mask.build(base, options.density, progress=show)
    with common.progress("extract", "parameter") as show:
        delta = extract(
            base, options.finetuned, mask, task=options.task, dense=options.dense, lossy=options.lossy,
            kind=options.kind, licence=options.licence, progress=show,
        )  # fmt: skip
    delta.save(options.output)
    if options.lossy:
        common.words(f"lost {delta.manifest.method['lost_share']:.2%} of the change (sum of squares)")
    common.words(f"{options.output}: {common.size(options.output.stat().st_size)}, {_summary(delta)}")
    print(delta.digest)


def _materialize(options: argparse.Namespace) -> None:
    from deltahub.convert.materialize import HEAD_FILE, has_own_head, materialize

    delta = common.load_delta(options.task, options)
    base = common.open_base(options.base, options.revision)
    with common.progress("write") as show:
        materialize(base, delta, options.output, mask=common.find_mask(options, delta), progress=show)
    how = "loads with from_pretrained"
    if has_own_head(delta):
        how = f"loads with AutoModel.from_pretrained, its linear head is in {HEAD_FILE}"
    common.words(f"{delta.task} on {base.id}, {how}:")
    print(options.output)


def _inspect(options: argparse.Namespace) -> None:
    import json

    delta = common.load_delta(options.task, options)
    manifest = json.loads(delta.manifest.to_json())
    tensors = [
        {"name": name, "dtype": raw.dtype, "shape": list(raw.shape), "bytes": raw.data.nbytes}
        for name, raw in delta.tensors.items()
    ]
    if options.json:
        common.print_json({"digest": delta.digest, "manifest": manifest, "tensors": tensors})
        return
    common.words(f"{delta.task}: {_summary(delta)}")
    for group, lossy in delta.manifest.quantization.items():
        scaled = f" in groups of {lossy.group}" if lossy.group else ""
        common.words(
            f"lossy: {lossy.rounding}{scaled}; {group} moved by at most {lossy.max_error:.2e}, "
            f"{lossy.relative_rms:.2%} of their size (root mean square)"
        )
    if delta.manifest.method.get("lossy"):
        common.words(f"lossy: {delta.manifest.method['lost_share']:.2%} of the change did not fit the mask")
    rows = [
        [key, _shown(value)]
        for key, value in {"digest": delta.digest, **manifest}.items()
        if value not in (None, {}, [])
    ]
    common.print_table(["field", "value"], rows)
    print()
    common.print_table(
        ["tensor", "dtype", "shape", "bytes"],
        ([t["name"], t["dtype"], t["shape"], t["bytes"]] for t in tensors),
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items() if item not in (None, [], {}))
    if isinstance(value, list):
        return ", ".join(map(str, value[:12])) + (f", ... {len(value)} in all" if len(value) > 12 else "")
    return str(value)


def _summary(delta: Delta) -> str:
    parts = [f"{delta.manifest.kind}"]
    for group, title in (("values", "values"), ("dense", "dense"), ("adapter", "adapter"), ("head", "head")):
        count = sum(raw.size for name, raw in delta.tensors.items() if name.partition(".")[0] == group)
        parts += [f"{count:,} {title}"] if count else []
    return ", ".join(parts)


def _diff(options: argparse.Namespace) -> None:
    from deltahub.compare import diff

    base = common.open_base(options.base, options.revision)
    pair = [common.load_delta(name, options) for name in (options.a, options.b)]
    found = diff(base, pair[0], pair[1], common.find_mask(options, pair[0]))
    if options.json:
        common.print_json(asdict(found))
        return
    moved = " and ".join(
        f"{count / max(1, found.values):.1%} of {name}"
        for count, name in zip(found.moved, (found.a, found.b), strict=True)
    )
    common.words(
        f"{found.a} and {found.b}: {found.values:,} values, {found.equal:,} equal, {moved} moved from the base; "
        f"changes have cosine {found.cosine:+.3f}, signs agree in {found.sign_agreement:.1%}, "
        f"distance {found.distance:.4g}"
    )
    for title, names in (("dense", found.dense), ("head", found.head)):
        if names:
            common.words(f"{title} differs: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}")
    common.print_table(
        ["tensor", "values", "cosine", "signs agree", "distance"],
        (
            [layer.tensor, layer.values, f"{layer.cosine:+.3f}", f"{layer.sign_agreement:.1%}", f"{layer.distance:.4g}"]
            for layer in found.layers[: options.top]
        ),
    )


def _merge(options: argparse.Namespace) -> None:
    from deltahub.merging import merge

    deltas = [common.load_delta(name, options) for name in options.tasks]
    merged = merge(deltas, weights=options.weights, method=options.method, task=options.task, head=options.head)
    merged.save(options.output)
    common.words(f"{options.output}: {merged.task} of {', '.join(delta.task for delta in deltas)}")
    print(merged.digest)
