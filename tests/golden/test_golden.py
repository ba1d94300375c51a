"""Hubs and files of every format version are read for ever; later versions are told apart from damage."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from deltahub import keys, sealed
from deltahub.cli import main
from deltahub.delta import Delta
from deltahub.errors import FormatError, NewerFormatError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.stores import MemoryStore
from tests.test_hub import dump, tiny

HERE = Path(__file__).parent
VERSIONS = {
    "adapted@1": ("8cc8388a7e459e709798802b06141965efea87ea32465b220fdecdfadff90a2f", 1),
    "copied@2": ("d126107cb258a2f428eb9a03a7895d0eb11b3cc8734313054526bd9f623ec4c1", 1),
    "given@1": ("a9b5f337335867755e60d05622db33e69e10ccce018c328be89f1c640d473902", 1),
    "small@1": ("c509810bad5082bbf69f7c9a951faa5a8384838def0af65889a31d8a8fa27967", 2),
    "tone@1": ("11c60dc44bd220ade992ccdacaae1373a9999ae943cbe502ce861d4808c45702", 1),
    "topic@2": ("80ff7d44ebe58b4fc18ee74dcda280a691ddcf8f34e40b4dd824f27ca8df782e", 1),
    "topic@3": ("a1e488343a415e68aed42afd01e1cdbda6ee701192b5d5085b3e189e398562a8", 1),
}
"""Digest of the delta, and format version of its record."""
MASKS = [
    "4a34f14035d2a10f006f17dd66495905960c69308b0e1eff40ec27356ee294c5",
    "a2d3c4f9fa3426a81b463bf6d16627687cfdd3b27300f666bc117615a90b67ad",
]


@pytest.fixture
def hub(tmp_path) -> Hub:
    """A copy, so that nothing can change the golden one."""
    shutil.copytree(HERE / "hub", tmp_path / "hub")
    return Hub.open(tmp_path / "hub", create=False)


def test_every_version_of_the_golden_hub_is_what_it_was(hub):
    records_ = [record for info in hub.tasks() for record in hub.versions(info.task)]
    assert {record.reference: (record.digest, record.format_version) for record in records_} == VERSIONS
    assert {reference: hub.pull(reference).digest for reference in VERSIONS} == {
        reference: digest for reference, (digest, _) in VERSIONS.items()
    }
    assert [mask.digest for mask in hub.masks()] == MASKS
    assert {info.task: hub.tags(info.task) for info in hub.tasks() if info.tags} == {
        "tone": {"best": 1, "prod": 1}, "topic": {"prod": 2},
    }  # fmt: skip
    [given] = [mask for mask in map(hub.mask, MASKS) if isinstance(mask, Mask)]
    assert (given.digest, given.k) == (Mask.load(HERE / "format-1.mask").digest, 308)


def test_the_golden_hub_is_clean_and_goes_on(hub):
    report = hub.verify()
    assert (report.versions, report.masks, report.problems) == (7, 2, ())
    hub.gc(grace_seconds=0)
    assert hub.verify().loose == ()
    for task, number in (("topic", 4), ("copied", 3), ("small", 2)):
        assert hub.push(hub.pull(task).with_manifest(licence="Apache-2.0")).number == number
    assert hub.push(tiny("new", 1)).number == 1
    assert hub.verify().problems == ()


@pytest.mark.parametrize(
    ("name", "digest", "version"),
    [
        ("format-1.delta", "46939c2034cc69577e9206215a3af7565e390f6b0ed0e28535be24077170ebd7", 1),
        ("format-2.delta", "a7840ba8f9f9ed220cbbe8a15b26da8e5450e8030bcde0da56379c2273e99c50", 2),
    ],
)
def test_golden_deltas_are_read_and_written_again_the_same(name, digest, version):
    delta = Delta.load(HERE / name)
    assert (delta.digest, delta.manifest.format_version) == (digest, version)
    assert dump(delta) == (HERE / name).read_bytes()


@pytest.mark.parametrize(
    "head",
    [
        b'{"format":"deltahub","format_version":2}',
        b'{"format":"deltahub","format_version":99,"features":["packs"],"since":"2030"}\n',
        b'{\n  "format_version": 2,\n  "format": "deltahub"\n}',
    ],
)
def test_a_hub_of_a_later_format_asks_for_an_upgrade(tmp_path, capsys, head):
    (tmp_path / "hub.json").write_bytes(head)
    with pytest.raises(NewerFormatError, match=r"has format \d+, this deltahub reads 1; upgrade deltahub"):
        Hub.open(tmp_path)
    assert main(["list", "--hub", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("this deltahub reads 1; upgrade deltahub\n")
    assert (tmp_path / "hub.json").read_bytes() == head


@pytest.mark.parametrize(
    "head",
    [
        b"", b"{}", b"\xff" * 99, b"[" * 4096, b'{"format":"deltahub","format_version":1}\n',
        b'{"format":"deltahub","format_version":0}', b'{"format":"deltahub","format_version":true}',
        b'{"format":"deltahub","format_version":2.0}', b'{"format":"deltahub","format_version":"2"}',
        b'{"format":"other","format_version":2}', b'{"format":"deltahub","format_version":2,"format_version":2}',
    ],
)  # fmt: skip
def test_a_damaged_hub_is_not_taken_for_a_later_one(tmp_path, head):
    (tmp_path / "hub.json").write_bytes(head)
    with pytest.raises(FormatError, match=r"hub\.json at .* is damaged: expected .*write these very bytes") as caught:
        Hub.open(tmp_path)
    assert not isinstance(caught.value, NewerFormatError)


def test_later_records_and_files_ask_for_an_upgrade(tmp_path):
    """Whatever fields they have, as long as they are sealed as all records are."""
    inner = MemoryStore()
    for entry in Hub.open(HERE / "hub", create=False).store.list():
        inner.put(entry.key, (HERE / "hub" / entry.key).read_bytes())
    hub = Hub(inner)
    for key, known in ((keys.version("tone", 1), "1 to 2"), (keys.mask(MASKS[0]), "1")):
        inner.put(key, sealed.seal({"format_version": 3, "packs": [1, 2]}))
        words = rf"{re.escape(key)} has format 3, this deltahub reads {known}; upgrade deltahub"
        with pytest.raises(NewerFormatError, match=words):
            hub.pull("tone") if "tone" in key else hub.mask(MASKS[0])
        assert any(re.fullmatch(words, problem.problem) for problem in hub.verify().problems)
    for name, entry in (("format-2.delta", "deltahub"), ("format-1.mask", "deltahub-mask")):
        (tmp_path / name).write_bytes(_later((HERE / name).read_bytes(), entry))
        with pytest.raises(NewerFormatError, match=r"has format 3, this deltahub reads 1( to 2)?; upgrade deltahub"):
            (Delta if name.endswith("delta") else Mask).load(tmp_path / name)


def _later(data: bytes, entry: str) -> bytes:
    """The same file with format version 3 and a field more."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    document = json.loads(head["__metadata__"][entry]) | {"format_version": 3, "new": True}
    head["__metadata__"][entry] = json.dumps(document)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
