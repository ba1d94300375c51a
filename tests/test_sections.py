"""How a version's tensors are spread over blobs, and which format version it takes to say so."""

from __future__ import annotations

import itertools

import pytest

from deltahub.delta import Delta
from deltahub.errors import DeltahubError, FormatError
from deltahub.hub import Hub
from deltahub.manifest import ROUNDINGS, Quantization
from deltahub.records import VersionRecord
from deltahub.sealed import seal, unseal
from deltahub.versions import ALONE
from tests.test_hub import blobs, f32, tiny
from tests.test_rounding import group_of, whole

_names = itertools.count()


@pytest.fixture
def hub() -> Hub:
    return Hub.open(f"memory://sections-{next(_names)}")


def blob_of(hub: Hub, reference: str, name: str) -> str:
    [blob] = [section.data.blob for section in hub.version(reference).sections if name in dict(section.tensors)]
    return blob


@pytest.mark.parametrize("head", ROUNDINGS)
def test_a_layer_that_tasks_share_is_stored_once_and_outlives_one_of_them(hub, head):
    frozen = {"head_frozen": ["inner.weight"]}
    first, second = whole("first", **frozen), whole("second", seed=20, **frozen)
    hub.push(first, head=head)
    before = blobs(hub)
    hub.push(second, values="int8")
    assert blob_of(hub, "first", "head.inner.weight") == blob_of(hub, "second", "head.inner.weight")
    assert hub.pull("second").tensors["head.inner.weight"] == first.tensors["head.inner.weight"]
    hub.remove("second")
    hub.gc(grace_seconds=0)
    assert blobs(hub) == before
    assert hub.pull("first").tensors["head.inner.weight"] == first.tensors["head.inner.weight"]
    assert hub.verify().problems == ()
    assert hub.push(second, head=head).number == 2
    hub.remove("first")
    hub.gc(grace_seconds=0)
    assert hub.pull("second").raw("head")["inner.weight"] == first.raw("head")["inner.weight"]


@pytest.mark.parametrize(("elements", "sections"), [(ALONE // 4 - 1, 1), (ALONE // 4, 2)])
@pytest.mark.parametrize("group", ["head", "dense"])
def test_tensors_of_16_kib_are_blobs_of_their_own(hub, group, elements, sections):
    tensors = {f"{group}.big": f32(elements), f"{group}.one": f32(3), f"{group}.two": f32(5)}
    hub.push(Delta(tiny("t", 0, mask=False).manifest, tensors))
    record = hub.version("t")
    assert len(record.sections) == sections
    assert record.format_version == sections  # two sections of one group and dtype are what version 1 cannot say
    assert hub.pull("t").tensors == tensors


def test_a_damaged_blob_of_a_head_in_many_sections_is_named(hub):
    hub.push(whole())
    bad = [s.data for s in hub.version("all").sections if group_of(s.tensors[0][0]) == "head"]
    assert len(bad) == 2
    for blob in bad:
        key = f"blobs/{blob.blob[:2]}/{blob.blob}"
        good = hub.store.get(key)
        hub.store.put(key, good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DeltahubError, match=f"blob {blob.blob[:16]} of all@"):
            hub.pull("all")
        [problem, *_] = hub.verify().problems
        assert problem.key == key
        hub.push(whole())
        assert hub.verify().problems == ()


def test_what_the_first_version_can_say_it_says(hub):
    for number, (values, head, manifest, record) in enumerate(
        [
            ("exact", "exact", 1, 1), ("int8", "exact", 1, 1), ("int4", "exact", 1, 1), ("bf16", "exact", 2, 1),
            ("exact", "bf16", 2, 1), ("int4", "int8", 2, 1),
        ]
    ):  # fmt: skip
        hub.push(tiny("t", 5), values=values, head=head)
        found = hub.version(f"t@{number + 1}")
        assert found.manifest.format_version == manifest
        assert f'"format_version":{manifest}' in found.manifest_json
        assert found.format_version == record
        assert f'"format_version":{record}'.encode() in found.to_bytes()
    hub.push(whole(), values="int8")
    assert hub.version("all").format_version == 2


@pytest.mark.parametrize(
    ("task", "version", "words"),
    [("all", 1, "expected 2"), ("t", 2, "expected 1"), ("all", 3, "upgrade"), ("t", 3, "upgrade")],
)
def test_a_record_of_another_format_version_than_it_needs_is_refused(hub, task, version, words):
    hub.push(whole())
    hub.push(tiny("t", 0))
    key = f"tasks/{task}/v00000001.json"
    names = "task number digest size pushed manifest sections"
    document = unseal(hub.store.get(key), key, names, newest=2) | {"format_version": version}
    with pytest.raises(FormatError, match=words):
        VersionRecord.from_bytes(seal(document), key)


def test_values_of_the_first_version_leave_dense_tensors_to_be_rounded(hub):
    """Version 1 rounded values only; a later push may round the rest."""
    old = Delta(
        whole().with_manifest(quantization={"values": Quantization("int8", 256, 0.1, 0.01)}).manifest, whole().tensors
    )
    assert old.manifest.format_version == 1
    hub.push(old, values="int8")
    pulled = hub.pull("all")
    assert pulled.tensors["values"] == old.tensors["values"]
    assert pulled.manifest.quantization["dense"].rounding == "int8"
    assert pulled.tensors["dense.b.bias"] != old.tensors["dense.b.bias"]
