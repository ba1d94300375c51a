"""Where things lie in a hub's store; FORMAT.md has the same as a table."""

from __future__ import annotations


def blob(name: str) -> str:
    return f"blobs/{name[:2]}/{name}"


def version(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.json"


def tombstone(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.removed"


def tag(task: str, name: str) -> str:
    return f"tasks/{task}/tag.{name}.json"


def mask(digest: str) -> str:
    return f"masks/{digest}.json"


def base(digest: str) -> str:
    return f"bases/{digest}.json"


def lease(name: str) -> str:
    return f"pushing/{name}.json"


def parse(key: str) -> tuple[str, str]:
    """What a key below ``tasks/TASK/`` is: ``("version", "3")``, ``("removed", "3")``, ``("tag", "prod")``.

    Two empty strings for a stranger: a hub's folder may hold files of other programs, which are left alone.
    """
    stem, _, ending = key.rpartition("/")[2].rpartition(".")
    if len(stem) == 9 and stem[0] == "v" and stem[1:].isdigit() and ending in ("json", "removed"):
        return ("version" if ending == "json" else "removed"), str(int(stem[1:]))
    if stem.startswith("tag.") and ending == "json":
        return "tag", stem.removeprefix("tag.")
    return "", ""
