"""A101 to A199: JSON documents of a hub and manifests of deltas. Most have a right checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from deltahub import keys, records, sealed
from deltahub.cli.common import printable
from deltahub.delta import Delta
from deltahub.errors import FormatError, IntegrityError, ManifestError, NotFoundError, UsageError
from tests.attacks.attack import (
    MIB,
    RECORD,
    REFERENCE,
    TAG,
    Attack,
    Place,
    manifest,
    material,
    values_of,
    with_manifest,
)

Run = Callable[[Place], object]


def _record(**changes: Any) -> Run:
    return lambda place: place.reseal(RECORD, lambda document: document.update(changes)).pull(REFERENCE)


def _section(**changes: Any) -> Run:
    return lambda place: place.reseal(RECORD, lambda document: values_of(document).update(changes)).pull(REFERENCE)


def _raw(key: str, data: bytes | str) -> Run:
    """The bytes of a document as they stand, with whatever checksum."""

    def run(place: Place) -> None:
        hub = place.hub()
        place.write(f"hub/{key}", data)
        hub.pull("sst2:prod")

    return run


def _tag(number: object) -> Run:
    return lambda place: place.reseal(TAG, lambda document: document.update(version=number)).pull("sst2:prod")


def _mask(**changes: Any) -> Run:
    def run(place: Place) -> None:
        key = material().mask_key
        place.reseal(key, lambda document: document.update(changes)).mask(keys.digest_of(key))

    return run


def _head(data: bytes | str) -> Run:
    def run(place: Place) -> None:
        place.hub()
        place.write("hub/hub.json", data)
        place.hub()

    return run


def _manifest(**changes: Any) -> Run:
    return lambda _: Delta.loads(with_manifest(json.dumps({**manifest(), **changes})))


def _manifest_text(old: str, new: str) -> Run:
    def run(_: Place) -> None:
        text = json.dumps(manifest())
        assert old in text
        Delta.loads(with_manifest(text.replace(old, new)))

    return run


def _many_objects(place: Place) -> None:
    """Each takes 64 bytes of memory for 3 bytes of text."""
    _raw(RECORD, "[" + "{}," * 5_500_000 + "0]")(place)


def _sparse(key: str) -> Run:
    """A document that grew by a gigabyte of holes."""

    def run(place: Place) -> None:
        hub = place.hub()
        os.truncate(place.target / "hub" / key, 1 << 30)
        hub.pull("sst2:prod")

    return run


def _doubled(place: Place) -> None:
    """The second of two equal keys is the one that most readers take: the checksum is right for that one."""
    text = place.hub().store.get(RECORD).decode()
    place.write(f"hub/{RECORD}", text.replace('{"check"', '{"task":"other","check"', 1))
    place.hub().pull(REFERENCE)


def _reordered(place: Place) -> None:
    document = json.loads(place.hub().store.get(RECORD))
    place.write(f"hub/{RECORD}", json.dumps(dict(reversed(document.items())), separators=(",", ":")))
    place.hub().pull(REFERENCE)


def _other_task(place: Place) -> None:
    """A record in the place of another task's."""
    hub = place.hub()
    hub.store.put(keys.version("mnli", 1), hub.store.get(RECORD))
    hub.pull("mnli@1")


def _other_manifest(place: Place) -> None:
    hub = place.reseal(RECORD, lambda document: document.update(task="mnli"))
    hub.store.put(keys.version("mnli", 1), hub.store.get(RECORD))
    hub.pull("mnli@1")


def _other_base(place: Place) -> None:
    key = next(entry.key for entry in place.hub().store.list("bases"))
    place.reseal(key, lambda document: document.update(digest="../../outside/secret"))
    records.read_base(place.hub().store.get(key), key)


def _twice(place: Place) -> None:
    def change(document: dict[str, Any]) -> None:
        document["sections"].append(document["sections"][0])
        document["format_version"] = 2

    place.reseal(RECORD, change).pull(REFERENCE)


def _lease(data: bytes) -> Run:
    """A collector reads leases and marks of whoever can write; a bad one must not stop it, nor be taken for a good."""

    def run(place: Place) -> None:
        hub = place.hub()
        place.write("hub/pushing/0123456789abcdef.json", data)
        place.write("hub/collecting/0123456789abcdef.json", data)
        assert hub.gc(dry_run=True).deleted == ()
        hub.pull(REFERENCE)

    return run


def _strangers(place: Place) -> None:
    """Files of other programs, with names that no key can have, are neither read nor deleted."""
    hub = place.hub()
    names = [
        "pushing/a b",
        "pushing/\u00e9.json",
        "collecting/notes.txt",
        "blobs/zz/" + "0" * 64,
        ".a b.part",
        "x/a\nb",
    ]
    for name in names:
        place.write(f"hub/{name}", b"mine")
    assert hub.gc(grace_seconds=0).deleted == ()
    assert hub.verify().problems == ()
    assert all((place.target / "hub" / name).read_bytes() == b"mine" for name in names)


def _printed(_: Place) -> None:
    assert printable("a\x1b[2J\u202eb\u2066") == r"a\x1b[2J\u202eb\u2066"


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


ATTACKS = [
    Attack(101, "a record with a key twice", _doubled, FormatError),
    Attack(102, "a record with its keys in another order", _reordered, IntegrityError),
    Attack(103, "a record without its checksum", _raw(RECORD, b"{}"), IntegrityError),
    Attack(104, "a record that is no object", _raw(RECORD, b"[]"), FormatError),
    Attack(105, "a record that is not UTF-8", _raw(RECORD, b"\xff\xfe{}"), FormatError),
    Attack(106, "an empty record", _raw(RECORD, b""), FormatError),
    Attack(107, "a record of 100,000 nested lists", _raw(RECORD, _deep(100_000)), FormatError),
    Attack(108, "a record of 900 nested lists, just readable", _raw(RECORD, _deep(900)), FormatError),
    Attack(109, "a record of 16 MiB of empty objects", _many_objects, FormatError, memory=96 * MIB),
    Attack(110, "a record of a gigabyte", _sparse(RECORD), FormatError),
    Attack(111, "a record with a number of 10,000 digits", _raw(RECORD, '{"a":' + "9" * 10_000 + "}"), FormatError),
    Attack(112, "a record with NaN", _raw(RECORD, b'{"a":NaN}'), FormatError),
    Attack(113, "a record with 1e999", _raw(RECORD, b'{"a":1e999}'), FormatError),
    Attack(114, "a record with half a surrogate pair", _raw(RECORD, b'{"a":"\\ud800"}'), FormatError),
    Attack(115, "a record of another task, by its path", _other_task, FormatError),
    Attack(116, "a record whose manifest is of another task", _other_manifest, FormatError),
    Attack(117, "a record with a task that is a path", _record(task="../outside"), FormatError),
    Attack(118, "a record with number true", _record(number=True), FormatError),
    Attack(119, "a record with number 2^63", _record(number=1 << 63), FormatError),
    Attack(120, "a record with number -1", _record(number=-1), FormatError),
    Attack(121, "a record with a field more", _record(more=1), FormatError),
    Attack(122, "a record of format version 99", _record(format_version=99), FormatError),
    Attack(123, "a record with a size of 2^62", _record(size=1 << 62), FormatError),
    Attack(124, "a record with another delta's digest", _record(digest="0" * 64), IntegrityError),
    Attack(125, "a record with no sections", _record(sections=[]), FormatError),
    Attack(126, "a record with a section twice", _twice, FormatError),
    Attack(127, "a section whose blob is a path", _section(blob="../../outside/secret"), FormatError),
    Attack(128, "a section whose blob is not there", _section(blob="0" * 64), NotFoundError),
    Attack(129, "a section of a shape of 2^63", _section(tensors=[["values", [1 << 63]]]), FormatError),
    Attack(130, "a section whose shape's product overflows 64 bits",
           _section(tensors=[["values", [1 << 32, 1 << 32]]], size=0), FormatError),
    Attack(131, "a section of 17 dimensions", _section(tensors=[["values", [1] * 17]]), FormatError),
    Attack(132, "a section of a negative shape", _section(tensors=[["values", [-744]]]), FormatError),
    Attack(133, "a section with a tensor outside its group", _section(tensors=[["__class__", [745]]]), FormatError),
    Attack(134, "a section of a group that there is not", _section(group="code"), FormatError),
    Attack(135, "a section of dtype pickle", _section(dtype="pickle"), FormatError),
    Attack(136, "a section with no bytes stored", _section(stored=0), IntegrityError),
    Attack(137, "a tag to version 0", _tag(0), FormatError),
    Attack(138, "a tag to version 2^63", _tag(1 << 63), FormatError),
    Attack(139, "a tag to version true", _tag(True), FormatError),
    Attack(140, "a tag to a path", _tag("../../outside/secret"), FormatError),
    Attack(141, "a tag to a version that there is not", _tag(7), NotFoundError),
    Attack(142, "a tag of a gigabyte", _sparse(TAG), FormatError),
    Attack(143, "hub.json of a newer format", _head(b'{"format":"deltahub","format_version":99}'), FormatError),
    Attack(144, "hub.json of another program", _head(b'{"name":"hub"}'), FormatError),
    Attack(145, "an empty hub.json", _head(b""), FormatError),
    Attack(146, "a mask of more positions than parameters", _mask(k=1 << 40), FormatError),
    Attack(147, "a mask of 2^63 parameters", _mask(n=1 << 63), FormatError),
    Attack(148, "a mask of another digest, in its place", _mask(digest="0" * 64), IntegrityError),
    Attack(149, "a mask without positions that no recipe gives", _mask(data=None), FormatError),
    Attack(150, "a mask whose recipe is no object", _mask(recipe=["file"]), FormatError),
    Attack(151, "a base whose digest is a path", _other_base, FormatError),
    Attack(152, "a lease or mark that is torn", _lease(b'{"blobs":['), harmless="passed over; nothing is deleted"),
    Attack(153, "a lease or mark of paths", _lease(sealed.seal({"blobs": ["../x"]})),
           harmless="passed over; nothing is deleted"),
    Attack(154, "a lease or mark of 100,000 nested lists", _lease(_deep(100_000).encode()),
           harmless="passed over; nothing is deleted"),
    Attack(155, "names in a hub's folder that no key can have", _strangers,
           harmless="left alone: not read, not deleted, in nobody's way"),
    Attack(161, "a manifest of a task that is a path", _manifest(task="../../x"), ManifestError),
    Attack(162, "a manifest with a field more", _manifest(__class__="os.system"), ManifestError),
    Attack(163, "a manifest of format version true", _manifest(format_version=True), ManifestError),
    Attack(164, "a manifest of format version 99", _manifest(format_version=99), FormatError),
    Attack(165, "a manifest with a mask of 2^63 positions",
           _manifest(mask={"digest": "0" * 64, "k": 1 << 63, "n": 1 << 63, "recipe": {}}), ManifestError),
    Attack(166, "a manifest with 100,001 labels", _manifest(labels=[str(n) for n in range(100_001)]), ManifestError),
    Attack(167, "a manifest with a label twice", _manifest(labels=["a", "a"]), ManifestError),
    Attack(168, "a manifest with a label of a megabyte", _manifest(labels=["a" * MIB]), ManifestError),
    Attack(169, "a manifest with a metric that is text", _manifest(metrics={"accuracy": "1"}), ManifestError),
    Attack(170, "a manifest with a metric NaN", _manifest_text('"metrics": {', '"metrics": {"a": NaN'), FormatError),
    Attack(171, "a manifest with a metric of 400 digits",
           _manifest_text('"metrics": {', '"metrics": {"a": ' + "9" * 400), FormatError),
    Attack(172, "a manifest with a key twice", _manifest_text('"task":', '"task": "mnli", "task":'), FormatError),
    Attack(173, "a manifest of 100,000 nested lists", _manifest_text('"inputs": {', '"inputs": {"a":' + _deep(100_000)),
           FormatError),
    Attack(174, "a manifest of 5 MiB", _manifest(inputs={"a": "x" * (5 * MIB)}), ManifestError),
    Attack(175, "a manifest with a NUL in an id", _manifest(base={"digest": "0" * 64, "id": "a\0b", "revision": None}),
           ManifestError),
    Attack(176, "a manifest of a kind that there is not", _manifest(kind={"a": 1}), ManifestError),
    Attack(177, "a manifest of another mask than its values fit",
           _manifest(mask={"digest": "0" * 64, "k": 3, "n": 9, "recipe": {}}), FormatError),
    Attack(178, "a manifest of values without a mask", _manifest(mask=None), FormatError),
    Attack(179, "a manifest rounded to 3 bits",
           _manifest(quantization={"bits": 3, "group": 1, "max_error": 0, "relative_rms": 0}), ManifestError),
    Attack(181, "labels with escape codes and right-to-left overrides, printed", _printed,
           harmless="printed as escapes"),
    Attack(180, "a task to pull that its tag hides", lambda place: place.hub().pull("sst2:../v00000001"), UsageError),
]  # fmt: skip
