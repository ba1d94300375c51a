"""The page about a hub that people read where it lives: its tasks, what they save, and how to use them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from deltahub import keys, parallel, records, sealed
from deltahub.errors import FormatError, IntegrityError, NotFoundError
from deltahub.rawtensor import ITEMSIZE
from deltahub.records import VersionRecord

if TYPE_CHECKING:
    from deltahub.hub import Hub

KEY = "card.json"
"""What the page says of every task, so that a push need not read the records of all."""
BEGIN = "<!-- deltahub: from here to the next such line the text is made anew by every push -->"
END = "<!-- deltahub: end -->"
_MOST_ROWS = 1000
MOST_PAGE = 4 << 20
_MOST_FRONT = 256 << 10  # characters; each push takes seconds to read and write so many
_LONGEST = 60
_PLAIN = set(" -+=%,")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BASE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_LICENCES = {
    "apache-2.0", "mit", "isc", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mpl-2.0", "unlicense", "zlib",
}  # fmt: skip
"""Names of licences in front matter, which are SPDX's in small letters; any other is ``other`` there."""


@dataclass(frozen=True)
class Row:
    """One task, by its newest version; ``stored`` and ``full`` checkpoint in bytes, ``full`` 0 where nobody knows."""

    task: str
    kind: str
    labels: int
    version: int
    metrics: dict[str, float]
    stored: int
    full: int
    tags: list[str]
    licence: str
    base: str


def update(hub: Hub, tasks: Iterable[str]) -> None:
    """Makes the lines of ``tasks`` anew, where the hub's store shows a page; those of others stay as they are.

    To be called in the transaction that changed the tasks. A page that is no text, or of more than 4 MiB, is not ours
    to change.
    """
    page = hub.store.page
    if page is None:
        return
    old = _got(hub, page, MOST_PAGE + 1)
    if len(old) > MOST_PAGE:
        return
    try:
        rows, front = _known(hub)
        for task in tasks:
            rows.pop(task, None)
            rows.update(_rows(hub, [task]))
    except (NotFoundError, FormatError, IntegrityError):
        rows, front = _rows(hub), {}
    text, front = _page(rows, hub.store.url, old.decode(errors="surrogateescape"), front)
    written = {
        page: text.encode(errors="surrogateescape"),
        KEY: sealed.seal({"front": front, "rows": [asdict(rows[task]) for task in sorted(rows)]}),
    }
    for key, data in written.items():
        if data != (old if key == page else _got(hub, key, len(data) + 1)):
            hub.store.put(key, data)


def text(hub: Hub, old: str = "") -> str:
    """The whole page about ``hub``, whatever its store; of ``old`` all stays that is not between the marks."""
    return _page(_rows(hub), hub.store.url, old, {})[0]


def _got(hub: Hub, key: str, most: int) -> bytes:
    try:
        return hub.store.get(key, 0, most)
    except NotFoundError:
        return b""


def _known(hub: Hub) -> tuple[dict[str, Row], dict[str, str]]:
    """Raises NotFoundError, FormatError or IntegrityError where all has to be made anew."""
    found = sealed.unseal(hub.store.get(KEY, 0, records.MOST_BYTES + 1), KEY, "front rows")
    rows, front = found["rows"], found["front"]
    wanted = {
        "task": str, "kind": str, "labels": int, "version": int, "metrics": dict, "stored": int, "full": int,
        "tags": list, "licence": str, "base": str,
    }  # fmt: skip
    good = (
        isinstance(front, dict)
        and all(isinstance(value, str) for value in front.values())
        and isinstance(rows, list)
        and all(isinstance(row, dict) and set(row) == {one.name for one in fields(Row)} for row in rows)
        and all(type(row[name]) is kind for row in rows for name, kind in wanted.items())
        and all(type(value) in (int, float) for row in rows for value in row["metrics"].values())
        and all(isinstance(tag, str) for row in rows for tag in row["tags"])
    )
    if not good:
        raise FormatError(KEY, expected="lines of tasks")
    return {row["task"]: Row(**row) for row in rows}, front


def _rows(hub: Hub, tasks: Iterable[str] | None = None) -> dict[str, Row]:
    """Without tasks that are gone, and those whose newest record cannot be read."""
    found: dict[str, Row] = {}
    folders = ["tasks"] if tasks is None else [f"tasks/{task}" for task in tasks]
    entries = [entry for folder in folders for entry in hub.store.list(folder)]

    def read(info: keys.TaskInfo) -> Row | None:
        try:
            return _row(hub._record(info.task, info.newest), info.tags)
        except (NotFoundError, FormatError, IntegrityError):
            return None

    def note(info: keys.TaskInfo, row: Row | None) -> None:
        if row:
            found[info.task] = row

    parallel.for_each(read, keys.infos(entries), parallel.threads(hub.store), note)
    return found


def _row(record: VersionRecord, tags: Iterable[str]) -> Row:
    manifest = record.manifest
    values = next((section.dtype for section in record.sections if section.group == "values"), "F32")
    head = sum(section.data.size for section in record.sections if section.group == "head")
    full = manifest.mask.n * ITEMSIZE[values] + head if manifest.mask else 0
    return Row(
        record.task, manifest.kind, len(manifest.labels), record.number, manifest.headline,
        record.stored + len(record.to_bytes()), full, list(tags), manifest.licence or "", manifest.base.id,
    )  # fmt: skip


def _page(rows: Mapping[str, Row], url: str, old: str, made: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The text, and what of its front matter is ours, as ``made`` was before."""
    found = _FRONT.match(old)
    front = _read_front(found[1]) if found else {}
    body = old if front is None or not found else old[found.end() :]
    fresh, ours = _front(front or {}, made, rows.values())
    section = f"{BEGIN}\n{_section(rows, url)}{END}\n"
    start, end = body.find(BEGIN), body.find(END)
    if 0 <= start < end:
        body = body[:start] + section + body[end + len(END) :].removeprefix("\n")
    else:
        body = (body.rstrip() + "\n\n" if body.strip() else _title(url)) + section
    if found and front is not None and fresh == front:
        return found[0] + body, ours
    import yaml  # only pages need it

    return f"---\n{yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True)}---\n{body}", ours


def _read_front(content: str) -> dict[str, Any] | None:
    """None where it is no mapping, or one too large or deep to write again: then it is text like the rest."""
    import yaml

    if len(content) > _MOST_FRONT:
        return None
    try:
        found = yaml.safe_load(content)
        yaml.safe_dump(found)  # takes more levels of the stack than reading
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else {} if found is None else None


def _front(
    old: Mapping[str, Any], made: Mapping[str, str], rows: Iterable[Row]
) -> tuple[dict[str, Any], dict[str, str]]:
    """``old`` with our fields; one that people wrote or changed stays theirs."""
    rows = list(rows)
    ours = {"library_name": "deltahub"}
    bases, licences = {row.base for row in rows}, {row.licence.lower() for row in rows}
    if len(bases) == 1 and _BASE_ID.fullmatch(min(bases)):
        ours["base_model"] = min(bases)
    if len(licences) == 1 and min(licences):
        ours["license"] = min(licences) if min(licences) in _LICENCES else "other"
    fresh, kept = dict(old), dict[str, str]()
    for name in ("library_name", "base_model", "license"):
        if name not in old or old[name] == made.get(name):
            fresh.pop(name, None)
            if name in ours:
                fresh[name] = kept[name] = ours[name]
    tags = old.get("tags", [])
    if isinstance(tags, list) and "deltahub" not in tags:
        fresh["tags"] = [*tags, "deltahub"]
    return fresh, kept


def _title(url: str) -> str:
    return (
        f"# {_shown(url.rstrip('/').rpartition('/')[2])}\n\nFine-tuned tasks of one base model, kept by deltahub.\n\n"
    )


def _section(rows: Mapping[str, Row], url: str) -> str:
    shown = [rows[task] for task in sorted(rows)]
    known = [row for row in shown if row.full]
    lines = ["## Tasks", "", _savings(known), ""] if known else ["## Tasks", ""]
    lines += [
        "| task | kind | labels | newest | metrics | stored | of a full checkpoint | tags |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    lines += [_line(row) for row in shown[:_MOST_ROWS]]
    if len(shown) > _MOST_ROWS:
        lines += ["", f"and {len(shown) - _MOST_ROWS:,} more: `deltahub list --hub {url}`"]
    task = shown[0].task if shown else "TASK"
    lines += [
        "", "## Use", "", "```bash", f"deltahub pull {task} --hub {url}", "```", "", "```python",
        "import deltahub as dh", "", f'delta = dh.Hub.open("{url}").pull("{task}")', "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _savings(rows: list[Row]) -> str:
    stored, full = sum(row.stored for row in rows), sum(row.full for row in rows)
    tasks = f"{len(rows):,} tasks take" if len(rows) > 1 else "1 task takes"
    return f"{tasks} {stored:,} bytes; as full checkpoints {full:,} bytes, {full / max(stored, 1):,.1f} times as much."


def _line(row: Row) -> str:
    metrics = ", ".join(
        f"{_shown(name)} {value:.4g}" for name, value in sorted(row.metrics.items()) if math.isfinite(value)
    )
    part = f"{row.stored / row.full:.2%}" if row.full else ""
    cells = [
        _shown(row.task), _shown(row.kind), row.labels or "", row.version, metrics, f"{row.stored:,}", part,
        ", ".join(map(_shown, row.tags)),
    ]  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _shown(name: str) -> str:
    """Text of others as what it says, and nothing else: no mark-up, no link, no line break."""
    cut = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    clean = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in cut)
    return "".join(letter if letter.isalnum() or letter in _PLAIN else f"&#{ord(letter)};" for letter in clean)
