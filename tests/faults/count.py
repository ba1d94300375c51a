"""Runs the faults suite and writes what it counted into tests/README.md: `python -m tests.faults.count`.

With DELTAHUB_SOAK=1, as `make soak` has it, every moment is tried; the last row of the table says which form it is of.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.soundness import COUNTS, Count
from tests.faults.stores import SOAK

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
HEAD = "| case | runs | lost | half visible |\n|---|---|---|---|\n"
_TABLE = re.compile(re.escape(HEAD) + r"((?:\|.*\n)*)")


def cases() -> list[str]:
    """Names of the tests of the suite, by file and in their order."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("test_*.py"))]
    found = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("test_")]


def words(case: str) -> str:
    return case.removeprefix("test_").replace("_", " ")


def rows() -> dict[str, list[str]]:
    """The rows of the table in tests/README.md: case to the other cells."""
    table = _TABLE.search(README.read_text(encoding="utf-8"))
    assert table is not None
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]
    return {first: rest for first, *rest in cells}


def write(counts: Mapping[str, Count]) -> None:
    made = [(words(case), counts[case]) for case in cases() if case in counts]
    lines = [f"| {case} | {count.runs:,} | {count.lost} | {count.half} |\n" for case, count in made]
    total = [sum(getattr(count, name) for _, count in made) for name in ("runs", "lost", "half")]
    lines.append(f"| all, in the {'long' if SOAK else 'short'} form | {total[0]:,} | {total[1]} | {total[2]} |\n")
    text = README.read_text(encoding="utf-8")
    README.write_text(_TABLE.sub(lambda _: HEAD + "".join(lines), text), encoding="utf-8")


def main() -> int:
    code = pytest.main([str(HERE), "--timeout=0", *sys.argv[1:]])
    if code == 0 and not sys.argv[1:]:
        write(COUNTS)
    for case in cases():
        count = COUNTS.get(case, Count())
        print(f"{count.runs:8,} runs {count.lost:3} lost {count.half:3} half visible  {words(case)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
