"""Reading a whole hub again: every digest, every reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deltahub import digest, keys, records, signatures, signing, versions
from deltahub.errors import DeltahubError, HubError, IntegrityError, NotFoundError, StoreError
from deltahub.records import VersionRecord
from deltahub.stores.cached import uncached
from deltahub.verified import Problem, Repaired, VerifyReport, lost_numbers, read_base, read_mask, read_version
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.hub import Hub

__all__ = ["Problem", "Repaired", "VerifyReport", "verify"]

_MOST = records.MOST_BYTES + 1
_PIECE = 8 << 20  # a loose blob may have any size

_ROUNDS = 3
"""Of mending: what belongs to a record, such as its signatures, can be judged only when that is whole."""

_Job = Callable[[], None]


def verify(hub: Hub, progress: Progress | None = None, *, repair: Hub | None = None) -> VerifyReport:
    """Reads, re-hashes and decodes every object and follows every reference; bad content is reported, not raised.

    Nothing else reads all: a push and a sync take what a remote store has for right by its size. An object that the
    store cannot give is reported as well, as long as the store gives others.

    Args:
        repair: another hub to fetch good copies from, of what is bad or missing here; see `repair.mend`. What was bad
            is then looked at again.

    Raises:
        StoreError: a place is out of reach altogether.
    """
    hub = type(hub)(uncached(hub.store), hub.required)  # a copy on this machine says nothing about the hub
    check = _Check(hub, progress)
    check.all()
    if repair is None or not check.problems:
        return check.report()
    from deltahub.repair import mend

    repaired: list[Repaired] = []
    unmended: dict[str, str] = {}
    for _ in range(_ROUNDS):
        found, unmended = mend(hub, repair, check.merged())
        repaired += found
        check.again([one.key for one in found])
        if not found or {problem.key for problem in check.merged()} <= unmended.keys():
            break
    return check.report(repaired, unmended)


class _Check:
    """Looks at a hub in jobs; those that found something can be run again."""

    def __init__(self, hub: Hub, progress: Callable[[int, int], None] | None) -> None:
        self.hub = hub
        self.store = uncached(hub.store)
        self.progress = progress
        self.sizes = self._blob_sizes()
        self.total = sum(self.sizes.values())
        self.seen: set[str] = set()
        self.needed: set[str] = set()
        self.bases: dict[str, list[str]] = {}
        self.problems: list[Problem] = []
        self.failed: list[_Job] = []
        self.versions: set[str] = set()
        self.masks: set[str] = set()
        self.signatures: set[str] = set()
        self.unchecked: set[str] = set()
        self.bytes = 0

    def all(self) -> None:
        self._run(self._head)
        below = [entry.key for entry in self.store.list("tasks")]
        for key in below:
            task, kind, what = keys.parse(key)
            if kind == "tag":
                self._run(partial(self._tag, task, what))
            elif kind == "version":
                self._run(partial(self._version, key))
            elif keys.past_numbers(key):
                self._run(partial(self._past, key))
        for key in below:
            if keys.parse(key)[1] == "signature":
                self._run(partial(self._signature, key))
        for task in sorted(keys.listings(below)):
            self._run(partial(self._lost, task, below))
        for folder, job in (("masks", self._mask), ("bases", self._base)):
            for entry in self.store.list(folder):
                if keys.digest_of(entry.key):
                    self._run(partial(job, entry.key))
        for name in sorted(self.bases):
            self._run(partial(self._named_base, name))
        for key in self._loose():
            self._run(partial(self._loose_blob, key))

    def again(self, mended: Sequence[str]) -> None:
        """Runs the jobs that found something, and looks at versions that were not there before."""
        jobs, self.failed, self.problems = self.failed, [], []
        self.sizes = self._blob_sizes()
        new = {key for key in mended if keys.parse(key)[1] == "version"} - self.versions
        for job in jobs + [partial(self._version, key) for key in sorted(new)]:
            self._run(job)
        for entry in self.store.list("tasks") if new else ():
            if keys.parse(entry.key)[1] == "signature" and entry.key not in self.signatures:
                self._run(partial(self._signature, entry.key))

    def report(self, repaired: Sequence[Repaired] = (), unmended: Mapping[str, str] | None = None) -> VerifyReport:
        problems = tuple(replace(one, unmended=(unmended or {}).get(one.key, "")) for one in self.merged())
        bad = {one.key for one in problems}
        loose = self._loose() + [entry.key for entry in self.store.unfinished()]
        return VerifyReport(
            len(self.versions), len(self.masks), len(self.seen), self.bytes, problems, tuple(loose),
            len(self.signatures), tuple(one for one in repaired if one.key not in bad), len(self.unchecked),
        )  # fmt: skip

    def merged(self) -> list[Problem]:
        """One problem for each key, with all who need it."""
        found: dict[str, Problem] = {}
        for one in self.problems:
            first = found.get(one.key, one)
            found[one.key] = replace(first, needed_by=tuple(dict.fromkeys(first.needed_by + one.needed_by)))
        return list(found.values())

    def _run(self, job: _Job) -> None:
        before = len(self.problems)
        job()
        if len(self.problems) > before:
            self.failed.append(job)

    def _guard(self, key: str, job: Callable[[], object], owner: str = "") -> bool:
        """Runs ``job``; what it raises becomes a problem of ``key``, unless the whole store is out of reach."""
        try:
            job()
        except DeltahubError as error:
            if isinstance(error, StoreError):
                self.store.stat("hub.json")
            self._problem(key, error, *([owner] if owner else []))
            return False
        return True

    def _problem(self, key: str, error: DeltahubError, *owners: str) -> None:
        self.problems.append(Problem(key, str(error), owners))

    def _head(self) -> None:
        def read() -> None:
            found = digest.of_bytes(self.store.get("hub.json", 0, 4096))
            digest.check("hub.json", digest.of_bytes(records.HUB), found)

        self._guard("hub.json", read)

    def _past(self, key: str) -> None:
        self._problem(key, HubError(f"{key} has a number that no version can have", hint="delete that file"))

    def _tag(self, task: str, tag: str) -> None:
        self._guard(keys.tag(task, tag), lambda: self.hub.version(f"{task}:{tag}"))

    def _lost(self, task: str, below: Sequence[str]) -> None:
        """Numbers below the last one that have neither record nor ``.removed``; whoever deletes by hand leaves them.

        A version that a sync copied with its number says so beside its record: what is missing below it never was here.
        """
        if not lost_numbers(task, below):
            return
        for span in lost_numbers(task, [entry.key for entry in self.store.list(f"tasks/{task}")]):
            key = keys.version(task, span.start)
            told = f"{span.start}" + (f" to {span.stop - 1}" if len(span) > 1 else "")
            hint = f"restore the file, or create the empty {keys.tombstone_of(key)}"
            self._problem(key, NotFoundError(f"{task} has lost version {told}, never removed", hint=hint))

    def _version(self, key: str) -> None:
        found: list[VersionRecord] = []

        def read() -> None:
            if self.store.stat(keys.tombstone_of(key)) is None:
                found.append(read_version(self.store.get(key, 0, _MOST), key))

        self._guard(key, read)
        for record in found:
            self._content(key, record)

    def _signature(self, key: str) -> None:
        """One beside a record that cannot be read is not looked at: the record is told. So is one that is lost."""
        task, number, signer = keys.signer(key)
        place = keys.version(task, number)
        if place not in self.versions:
            self._guard(place, lambda: self._signed_record(place, key))
            return
        if not signing.is_available():
            self.unchecked.add(key)
            return
        self.signatures.add(key)

        def read() -> None:
            record = read_version(self.store.get(place, 0, _MOST), place)
            [found] = signatures.of_record(self.store, record, [signer])
            if found.problem is not None:
                raise IntegrityError(found.problem, hint="whoever has the private key can sign again, or delete it")

        self._guard(key, read)

    def _signed_record(self, place: str, key: str) -> None:
        if self.store.stat(keys.tombstone_of(place)) is None and self.store.stat(place) is None:
            raise NotFoundError(f"{place} is missing, and was signed", hint=f"restore the file, or delete {key}")

    def _content(self, key: str, record: VersionRecord) -> None:
        self.versions.add(key)
        for section in record.sections:
            self._count(keys.blob(section.data.blob))
        owners = self.bases.setdefault(record.manifest.base.digest, [])
        owners += [record.reference] if record.reference not in owners else []
        mask = record.manifest.mask
        if mask is not None:
            name = keys.mask(mask.digest)
            self._guard(name, lambda: self.hub._mask(name), record.reference)
        bad = [s.data.blob for s in record.sections if not self._blob(s.data, record.reference)]
        if not bad:
            self._guard(key, lambda: versions.read(self.store, record), record.reference)

    def _blob(self, blob: records.Blob, owner: str) -> bool:
        return self._guard(keys.blob(blob.blob), lambda: versions.decode(self.store, blob, owner), owner)

    def _mask(self, key: str) -> None:
        def read() -> None:
            record = read_mask(self.store.get(key, 0, _MOST), key)
            if record.data is not None:
                self._count(keys.blob(record.data.blob))
                name = keys.blob(record.data.blob)
                owner = f"mask {record.digest[:16]}"
                if not self._guard(name, lambda: versions.read_mask(self.store, record), owner):
                    return

        self.masks.add(key)
        self._guard(key, read)

    def _base(self, key: str) -> None:
        self._guard(key, lambda: read_base(self.store.get(key, 0, _MOST), key))

    def _named_base(self, name: str) -> None:
        """Nothing is read through the record of a base, but nobody else could tell people which base it was."""
        key = keys.base(name)

        def look() -> None:
            if self.store.stat(key) is None:
                raise NotFoundError(f"{key} is missing", hint="push a task of that base again")

        if not self._guard(key, look):
            self.problems[-1] = replace(self.problems[-1], needed_by=tuple(self.bases[name]))

    def _loose(self) -> list[str]:
        return sorted(self.sizes.keys() - self.needed)

    def _loose_blob(self, key: str) -> None:
        """Read too, since a later push may come to rely on it."""
        self._read(key)
        self._guard(key, partial(self._rehash, key))

    def _rehash(self, key: str) -> None:
        pieces = (self.store.get(key, start, _PIECE) for start in range(0, max(1, self.sizes[key]), _PIECE))
        digest.check(key, key.rpartition("/")[2], digest.of_stream(pieces))

    def _count(self, key: str) -> None:
        self.needed.add(key)
        self._read(key)

    def _read(self, key: str) -> None:
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += self.sizes.get(key, 0)
            if self.progress:
                self.progress(self.bytes, self.total)

    def _blob_sizes(self) -> dict[str, int]:
        return {e.key: e.size for e in self.store.list("blobs") if keys.is_blob(e.key)}
