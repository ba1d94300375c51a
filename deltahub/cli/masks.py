"""`deltahub mask build` and `deltahub mask show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltahub.cli import common

if TYPE_CHECKING:
    from deltahub.checkpoint import Base
    from deltahub.mask import Mask
    from deltahub.space import Positions

_OF_RECIPE = {"file": ["indices"], "gradient": ["texts", "texts_column", "max_length", "device"], "lift": ["rank"]}
"""Options that only one recipe takes."""
_NEEDED = {"file": "indices", "gradient": "texts"}


def add(commands: common.Commands) -> None:
    group = commands.add_parser("mask", help="make and look at masks", description="Make and look at masks.")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = common.command(
        verbs, "build", _build, "choose the positions of a base that all its tasks share",
        "Needs no data (the smallest magnitudes of the base, random positions, LIFT's choice), or only texts without "
        "labels (gradient). Prints the mask's digest.",
    )  # fmt: skip
    build.add_argument("base", metavar="BASE", help="folder, .safetensors file or model id")
    common.revision_option(build)
    build.add_argument(
        "--density", type=float, default=0.005, help="share of all parameters, 0.005 for 0.5 %% (the default)"
    )
    build.add_argument(
        "--scope", choices=["blocks", "matrices", "all"],
        help="tensors to choose from: blocks (layers and final norms; the default), their matrices (the default for "
        "lift), or all",
    )  # fmt: skip
    build.add_argument("--include", metavar="GLOB", action="append", default=[], help="tensors to add; may be repeated")
    build.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="tensors to leave out; repeatable"
    )
    build.add_argument(
        "--recipe", default="smallest-magnitude", choices=["smallest-magnitude", "random", "gradient", "lift", "file"],
        help="how to choose: smallest-magnitude (default), random, gradient (what the representation of --texts "
        "depends on most), lift (largest of each matrix's --rank approximation), file (--indices). The masks of the "
        "last three cannot be rebuilt and travel with the hub",
    )  # fmt: skip
    build.add_argument("--seed", type=int, default=0, help="of the recipes random and gradient (default: 0)")
    build.add_argument(
        "--texts", metavar="FILE", type=Path,
        help="for gradient: texts without labels; .txt (a text a line), .jsonl, .csv, .tsv or .parquet",
    )  # fmt: skip
    build.add_argument("--texts-column", metavar="NAME", help="column of the texts, but of .txt (default: text)")
    build.add_argument("--max-length", type=int, metavar="N", help="for gradient: tokens per text (default: 128)")
    build.add_argument("--device", help="for gradient: torch device (default: cpu)")
    build.add_argument("--rank", type=int, metavar="N", help="for lift: singular values that are kept (default: 64)")
    build.add_argument("--indices", metavar="NPY", type=Path, help="positions chosen elsewhere, for the recipe file")
    common.output_option(build, "the mask file")
    show = common.command(verbs, "show", _show, "print where a mask's budget went, per group of tensors")
    show.add_argument("mask", metavar="FILE", type=Path, help="a mask file")
    show.add_argument("base", metavar="BASE", help="the base that it was made on")
    common.revision_option(show)
    common.json_option(show)


def _build(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError

    for recipe, names in _OF_RECIPE.items():
        given = [name for name in names if getattr(options, name) is not None]
        if options.recipe != recipe and given:
            raise UsageError(f"--{given[0].replace('_', '-')}", expected=f"--recipe {recipe}", got=options.recipe)
        if options.recipe == recipe and (needed := _NEEDED.get(recipe)) and needed not in given:
            raise UsageError(f"--recipe {recipe}", expected=f"--{needed} FILE with it")
    texts = _texts(options.texts, options.texts_column or "text") if options.texts is not None else []
    base = common.open_base(options.base, options.revision)
    mask = _made(base, texts, options)
    mask.save(options.output)
    common.words(f"{mask.k:,} of {mask.n:,} parameters of {base.id} in {options.output}")
    print(mask.digest)


def _made(base: Base, texts: list[str], options: argparse.Namespace) -> Mask:
    from deltahub.mask import Mask

    if options.recipe == "file":
        return Mask.of_indices(base, _positions(options.indices))
    names = ("scope", "max_length", "device", "rank")
    given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"include": options.include, "exclude": options.exclude}
    with common.progress("mask", {"gradient": "text", "lift": ""}.get(options.recipe, "B")) as show:
        if options.recipe == "gradient":
            from deltahub.tuning.masks import gradient_mask

            return gradient_mask(base, texts, options.density, seed=options.seed, progress=show, **given)
        if options.recipe == "lift":
            from deltahub.tuning.masks import lift_mask

            return lift_mask(base, options.density, progress=show, **given)
        return Mask.build(base, options.density, recipe=options.recipe, seed=options.seed, progress=show, **given)


def _texts(path: Path, column: str) -> list[str]:
    """Lines of a ``.txt`` file, blank ones left out, or a column of a file that tasks can be read from.

    Raises:
        DataError: no such file, not UTF-8, a row without a text, or no text at all.
    """
    from deltahub.errors import DataError
    from deltahub.tuning.data import fields, sources

    if path.suffix.lower() != ".txt":
        source = sources.open_source(path, sources.Columns({"text": column}), str(path))
        texts = [fields.text(place, column, row[column]) for place, row in source.rows]
    else:
        try:
            texts = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not texts:
        raise DataError(f"{path} has no text", expected="at least 1, better some hundreds")
    return texts


def _positions(path: Path) -> Positions:
    import numpy as np

    from deltahub.errors import FormatError
    from deltahub.files import store_errors

    try:
        with store_errors(path):
            found = np.load(path, allow_pickle=False)
    except Exception as error:  # noqa: BLE001  (numpy raises all sorts for what is no array)
        raise FormatError(f"{path} is not an array of numbers ({error})", expected=".npy of int64") from None
    if found.dtype.kind not in "iu":
        raise FormatError(f"{path}", expected="whole numbers", got=found.dtype)
    positions: Positions = np.sort(found.reshape(-1).astype(np.int64))
    return positions


def _show(options: argparse.Namespace) -> None:
    from deltahub.compare import budget
    from deltahub.mask import Mask

    mask = Mask.load(options.mask)
    base = common.open_base(options.base, options.revision)
    shares = budget(base, mask)
    if options.json:
        rows = [vars(share) | {"density": share.density} for share in shares]
        common.print_json(
            {"digest": mask.digest, "k": mask.k, "n": mask.n, "recipe": dict(mask.recipe), "groups": rows}
        )
        return
    recipe = ", ".join(f"{key} {value}" for key, value in mask.recipe.items() if value not in ([], None))
    common.words(f"mask {mask.digest[:16]} of {base.id}: {mask.k:,} of {mask.n:,} parameters, {recipe}")
    common.print_table(
        ["group", "role", "tensors", "parameters", "masked", "density", "share of mask", "zeros"],
        (
            [
                s.group,
                s.role,
                s.tensors,
                s.parameters,
                s.masked,
                f"{s.density:.3%}",
                f"{s.masked / mask.k:.1%}",
                s.zeros,
            ]
            for s in shares
        ),
    )
