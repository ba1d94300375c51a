"""All attacks by number; ``python -m tests.attacks.table --write`` puts the table into tests/README.md."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.attacks import blobs, checkpoints, containers, data, documents, names, places
from tests.attacks.attack import Attack, Elsewhere
from tests.attacks.elsewhere import ROWS

ATTACKS: list[Attack] = [
    *names.ATTACKS, *documents.ATTACKS, *containers.ATTACKS, *blobs.ATTACKS, *places.ATTACKS, *checkpoints.ATTACKS,
    *data.ATTACKS,
]  # fmt: skip
ELSEWHERE: list[Elsewhere] = ROWS
README = Path(__file__).parents[1] / "README.md"
_HEADING = "## Attacks\n"


def attack_table() -> str:
    """The section's text, without its heading."""
    rows = sorted([*ATTACKS, *ELSEWHERE], key=lambda row: row.number)
    refused = sum(row.happens.startswith("refused") for row in rows)
    head = [
        f"{len(rows)} attacks: {refused} end in one typed error, {len(rows) - refused} do no harm; 0 changed what lies",
        "outside their target, and 0 brought it out. A001 to A599 and A701 on are made one after the other in one",
        "process, in a folder of their own beside a secret, each with 64 MiB of memory (a few with more) and a minute;",
        "the tests check both, and that all beside the folder stays as it was. A601 to A699 stand as tests with what",
        "they attack. `python -m tests.attacks.table --write` writes this section.",
        "",
        "| number | what it tries | what happens |",
        "|---|---|---|",
    ]
    return "\n".join(head + [f"| {row.name} | {row.tries} | {row.happens} |" for row in rows]) + "\n"


def section(text: str) -> str:
    """What stands under the heading in the README's text."""
    _, found, after = text.partition(_HEADING)
    return after.split("\n## ")[0].strip("\n") + "\n" if found else ""


def written(text: str) -> str:
    """The README's text with the table in it."""
    before, _, after = text.partition(_HEADING)
    following = after.partition("\n## ")
    rest = f"\n## {following[2]}" if following[1] else ""
    return f"{before.rstrip()}\n\n{_HEADING}\n{attack_table()}{rest}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(written(README.read_text()))
    else:
        print(attack_table(), end="")
