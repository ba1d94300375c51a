"""Draws accuracy by stored bytes, every method at every rounding, as an SVG whose bytes depend on the results alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from deltahub.errors import DataError, DeltahubError
from quality.results import ROUNDINGS, read
from quality.summary import Line, accuracy, lines, stored

MARKERS = {"exact": "o", "bf16": "s", "int8": "^", "int4": "v"}
_COLOURS = (
    "#0b5fa5",
    "#c2410c",
    "#15803d",
    "#7e22ce",
    "#b91c1c",
    "#0e7490",
    "#a16207",
    "#be185d",
    "#334155",
    "#4d7c0f",
)
_SIZE = (9.0, 5.6)  # inches


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="what run.py wrote")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_name("accuracy-by-bytes.svg"))
    options = parser.parse_args(arguments)
    try:
        found = lines(read(options.file))
        whole = [line for line in found if line.complete]
        if not whole:
            raise DataError(f"{options.file} has no method with all its runs", hint="let run.py finish")
        draw(whole, options.out)
    except DeltahubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in found:
        if not line.complete:
            print(f"{line.row.name} is left out: runs are missing", file=sys.stderr)
    print(options.out)
    return 0


def draw(found: Sequence[Line], out: Path) -> None:
    """A curve for each line, from its most to its fewest bytes, head included; the name stands at the exact one."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context(
        {"svg.hashsalt": "quality", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = pyplot.subplots(figsize=_SIZE, layout="constrained")
        names = []
        for number, line in enumerate(found):
            colour = _COLOURS[number % len(_COLOURS)]
            points = [(name, line.mean(stored(name)), line.mean(accuracy(name))) for name in ROUNDINGS]
            there = [(name, x, y) for name, x, y in points if x is not None and y is not None]
            axes.plot([x for _, x, _ in there], [y for _, _, y in there], color=colour, linewidth=0.8, alpha=0.6)
            for name, x, y in there:
                axes.plot([x], [y], MARKERS[name], color=colour, markersize=5.5)
            names.append((line.row.name, there[0][1], there[0][2], colour))
        _explain(axes, found)
        figure.draw_without_rendering()
        _name(figure, axes, names)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _explain(axes: Any, found: Sequence[Line]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("stored bytes a task, head included")
    axes.set_ylabel(f"accuracy on held-out rows, mean of {len(found[0].tasks)} tasks and {len(found[0].seeds)} seeds")
    axes.grid(visible=True, which="major", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.08, y=0.08)
    marks = [axes.plot([], [], mark, color="#334155", markersize=5.5, label=name)[0] for name, mark in MARKERS.items()]
    axes.legend(handles=marks, title="rounding", loc="lower right", frameon=False)


def _name(figure: Any, axes: Any, names: Sequence[tuple[str, float, float, str]]) -> None:
    """Puts each name where it covers no point and no other name, as near to its point as can be."""
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else figure._get_renderer()
    taken = [
        _around(axes.transData.transform(line.get_xydata()[0])) for line in axes.lines if len(line.get_xydata()) == 1
    ]
    for name, x, y, colour in sorted(names, key=lambda item: -item[2]):
        label = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", color=colour, va="center")
        for distance in range(7, 120, 7):
            spots = [(distance, 0), (distance, distance), (distance, -distance), (0, distance), (0, -distance),
                     (-distance, distance), (-distance, -distance), (-distance, 0)]  # fmt: skip
            box = next((box for spot in spots if (box := _place(label, spot, renderer, axes, taken)) is not None), None)
            if box is not None:
                taken.append(box)
                break
        if distance > 14:
            axes.annotate("", (x, y), xytext=label.xyann, textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 3})  # fmt: skip


def _place(label: Any, spot: tuple[int, int], renderer: Any, axes: Any, taken: Sequence[Any]) -> Any:
    """The label's box at ``spot`` (points off its point), or None where it would cover something."""
    label.xyann = spot
    label.set_ha("left" if spot[0] > 0 else "right" if spot[0] < 0 else "center")
    box = label.get_window_extent(renderer)
    frame = axes.get_window_extent(renderer)
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 60 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return box if inside and not any(box.overlaps(other) for other in taken) else None


def _around(point: Any) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox([[point[0] - 4, point[1] - 4], [point[0] + 4, point[1] + 4]])


if __name__ == "__main__":
    sys.exit(main())
