"""`deltahub mask build` and `deltahub mask show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from deltahub.space import Positions


def add(commands: common.Commands) -> None:
    group = commands.add_parser("mask", help="make and look at masks", description="Make and look at masks.")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = common.command(
        verbs, "build", _build, "choose the positions of a base that all its tasks share",
        "Needs no data: the smallest magnitudes of the base, or random positions. Prints the mask's digest.",
    )  # fmt: skip
    build.add_argument("base", metavar="BASE", help="folder, .safetensors file or model id")
    common.revision_option(build)
    build.add_argument(
        "--density", type=float, default=0.005, help="share of all parameters, 0.005 for 0.5 %% (the default)"
    )
    build.add_argument(
        "--scope", default="blocks", choices=["blocks", "matrices", "all"],
        help="tensors to choose from: layers and final norms (default), their matrices, or everything",
    )  # fmt: skip
    build.add_argument("--include", metavar="GLOB", action="append", default=[], help="tensors to add; may be repeated")
    build.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="tensors to leave out; repeatable"
    )
    build.add_argument(
        "--recipe", default="smallest-magnitude", choices=["smallest-magnitude", "random", "file"], help="how to choose"
    )
    build.add_argument("--seed", type=int, default=0, help="of the random recipe (default: 0)")
    build.add_argument("--indices", metavar="NPY", type=Path, help="positions chosen elsewhere, for the recipe file")
    common.output_option(build, "the mask file")
    show = common.command(verbs, "show", _show, "print where a mask's budget went, per group of tensors")
    show.add_argument("mask", metavar="FILE", type=Path, help="a mask file")
    show.add_argument("base", metavar="BASE", help="the base that it was made on")
    common.revision_option(show)
    common.json_option(show)


def _build(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.mask import Mask

    base = common.open_base(options.base, options.revision)
    if (options.recipe == "file") != (options.indices is not None):
        raise UsageError("--recipe file and --indices NPY go together")
    if options.indices is not None:
        mask = Mask.of_indices(base, _positions(options.indices))
    else:
        with common.progress("mask") as show:
            mask = Mask.build(
                base, options.density, options.scope, include=options.include, exclude=options.exclude,
                recipe=options.recipe, seed=options.seed, progress=show,
            )  # fmt: skip
    mask.save(options.output)
    common.words(f"{mask.k:,} of {mask.n:,} parameters of {base.id} in {options.output}")
    print(mask.digest)


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
