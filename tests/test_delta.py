from __future__ import annotations

import dataclasses
import json
import re
import string
import time
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from deltahub import rawtensor
from deltahub.delta import Delta
from deltahub.errors import DeltahubError, FormatError, ManifestError, NewerFormatError, UsageError
from deltahub.manifest import BaseRef, Manifest, MaskRef, Quantization
from deltahub.names import KINDS, check_task, parse_reference
from deltahub.rawtensor import RawTensor
from deltahub.tensorfile import strict_json

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LOSSY = st.builds(Quantization, st.just("bf16"), st.none(), FINITE, FINITE) | st.builds(
    Quantization, st.sampled_from(["int8", "int4"]), st.integers(1, 999), FINITE, FINITE
)
MANIFESTS = st.builds(
    Manifest,
    task=st.from_regex(r"[a-z][a-z0-9]{0,20}", fullmatch=True).filter(
        lambda name: name not in ("con", "prn", "aux", "nul")
    ),
    kind=st.sampled_from(KINDS),
    base=st.builds(BaseRef, DIGESTS, st.text(string.printable, max_size=20)),
    mask=st.none()
    | st.builds(MaskRef, DIGESTS, st.integers(1, 2**40), st.just(2**41), st.dictionaries(st.text(), PLAIN, max_size=4)),
    labels=st.lists(st.text(max_size=9), unique=True, max_size=4).map(tuple),
    method=st.dictionaries(st.text(), PLAIN, max_size=3),
    metrics=st.dictionaries(st.text(), FINITE, max_size=3),
    inputs=st.dictionaries(st.text(), PLAIN, max_size=3),
    created=st.just("2026-01-02T03:04:05Z"),
    quantization=st.dictionaries(st.sampled_from(["values", "dense", "adapter", "head"]), LOSSY),
)


@settings(max_examples=100, deadline=None)
@given(MANIFESTS)
def test_a_manifest_comes_back_as_it_went(manifest):
    text = manifest.to_json()
    first = all(group == "values" and lossy.bits for group, lossy in manifest.quantization.items())
    assert json.loads(text)["format_version"] == (1 if first else 2)
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text


@settings(max_examples=200, deadline=None)
@given(MANIFESTS, st.data())
def test_any_change_of_structure_is_refused(manifest, data):
    document = json.loads(manifest.to_json())
    field = data.draw(st.sampled_from(sorted(document)))
    change = data.draw(st.sampled_from(["drop", "unknown", "type"]))
    if change == "drop":
        del document[field]
    elif change == "unknown":
        document["extra"] = 1
    else:
        document[field] = [[["no field is a list of lists"]]]
    with pytest.raises(FormatError):
        Manifest.from_json(json.dumps(document))


GOOD = Manifest("sst2", "regression", BaseRef("0" * 64, "b")).to_json()
SECOND = Manifest(
    "sst2", "regression", BaseRef("0" * 64, "b"), quantization={"head": Quantization("bf16", None, 0.5, 0.25)}
).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", GOOD[:-1], GOOD.replace('"task":"sst2"', '"task":"sst2","task":"qqp"'),
        GOOD.replace('"metrics":{}', '"metrics":{"a":NaN}'), GOOD.replace('"metrics":{}', '"metrics":{"a":1e999}'),
        GOOD.replace('"metrics":{}', '"metrics":{"a":true}'), GOOD.replace('"format_version":1', '"format_version":3'),
        SECOND.replace('"format_version":2', '"format_version":1'),
        SECOND.replace('"format_version":2', '"format_version":3'),
        GOOD.replace('"format_version":1', '"format_version":2'),
        GOOD.replace('"format_version":1', '"format_version":2').replace('"quantization":null', '"quantization":{}'),
        SECOND.replace('"head":', '"body":'), SECOND.replace("bf16", "exact"), SECOND.replace("bf16", "int8"),
        SECOND.replace('"bf16"', "16"), SECOND.replace('"group":null', '"group":256'),
        SECOND.replace('"group":null,', ""), SECOND.replace('"group":null', '"group":null,"bits":16'),
        GOOD.replace('"format_version":1', '"format_version":true'), GOOD.replace("sst2", "../a"),
        GOOD.replace("sst2", "A"),
        GOOD.replace('"labels":[]', '"labels":["a","a"]'), GOOD.replace("0" * 64, "0" * 63 + "G"),
        GOOD.replace('"inputs":{}', '"inputs":' + "[" * 100_000 + "]" * 100_000),
        GOOD.replace('"quantization":null', '"quantization":{"bits":3,"group":1,"max_error":0,"relative_rms":0}'),
        GOOD.replace('"quantization":null', '"quantization":{"bits":8.0,"group":1,"max_error":0,"relative_rms":0}'),
        GOOD.replace('"metrics":{}', '"metrics":{"a":1' + "0" * 400 + "}"),
        GOOD.replace('"metrics":{}', '"metrics":{"a":1' + "0" * 5000 + "}"),
        GOOD.replace('"method":{}', '"method":{"a":[1e999]}'), GOOD.replace('"method":{}', '"method":{"a":-1e999}'),
        GOOD.replace('"labels":[]', '"labels":["\\ud800"]'), GOOD.replace('"labels":[]', '"labels":["\ud800"]'),
        GOOD.replace('"method":{}', '"method":{"\\uDFFF":1}'), GOOD.replace('"licence":null', '"licence":"\\udc00 x"'),
    ],
)  # fmt: skip
def test_hostile_manifests_are_refused_with_one_line(text):
    with pytest.raises(FormatError) as error:
        Manifest.from_json(text)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_surrogates_in_pairs_are_text():
    assert Manifest.from_json(GOOD.replace('"labels":[]', r'"labels":["\ud83d\ude00 \\ud800"]')).labels == (
        "😀 \\ud800",
    )


@pytest.mark.parametrize("changes", [{"labels": ("\udcff",)}, {"metrics": {"a": float("inf")}}])
def test_what_no_manifest_can_say_is_refused_when_it_is_written(changes):
    with pytest.raises(ManifestError, match="cannot be written"):
        Delta(Manifest("sst2", "other", BaseRef("0" * 64, "b"), **changes), {}).digest  # noqa: B018


def test_a_key_that_is_there_twice_is_found_at_once():
    names = [f'"key{number}":0' for number in range(100_000)]
    started = time.process_time()
    with pytest.raises(FormatError, match="'key99999' twice"):
        strict_json("{" + ",".join([*names, names[-1]]) + "}", "the text")
    assert time.process_time() - started < 5  # a search for it among all others takes minutes


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xed\xa0\x80"', '"a"'.encode("utf-16"), b'\xef\xbb\xbf"a"'], ids=repr)
def test_json_is_utf_8(text):
    with pytest.raises(FormatError):
        strict_json(text, "the text")


def sample() -> Delta:
    """The delta of FORMAT.md."""
    recipe = {"name": "smallest-magnitude", "density": 0.5, "scope": "blocks", "include": [], "exclude": []}
    manifest = Manifest(
        "sst2", "text-classification", BaseRef("11" * 32, "tiny"), MaskRef("22" * 32, 2, 4, recipe),
        labels=("no", "yes"), method={"name": "pafi"},
        metrics={"validation_accuracy": 0.5}, created="2026-01-02T03:04:05Z",
    )  # fmt: skip
    values = RawTensor.of_bits("F32", (2,), np.array([1, -2.5], np.float32).view(np.uint32))
    bias = RawTensor.of_bits("BF16", (2,), np.array([0x3F80, 0xC000], np.uint16))
    return Delta(manifest, {"values": values, "head.classifier.bias": bias})


def golden(name: str) -> bytes:
    text = (files("deltahub") / "FORMAT.md").read_text()
    return bytes.fromhex(re.search(rf"```hex {name}\n(.*?)```", text, re.DOTALL).group(1))


def test_golden_bytes():
    data = golden("delta")
    assert b"".join(sample().dump()) == data
    found = Delta.loads(data)
    assert b"".join(found.dump()) == data
    assert found.manifest == sample().manifest
    assert found.digest == "9bc1de41b8eccca8fc2f69ba6e9713d906e73a435977937a3f69a44f61487ded"
    assert found.values.tolist() == [1.0, -2.5]
    assert found.head["classifier.bias"].tolist() == [1.0, -2.0]


def rounded_sample() -> Delta:
    """The delta of FORMAT.md in version 2: values were rounded to int4, and the head to bf16."""
    values, head = Quantization("int4", 256, 0.125, 0.0625), Quantization("bf16", None, 0.5, 0.25)
    return sample().with_manifest(quantization={"values": values, "head": head})


def test_golden_bytes_of_version_2():
    data = golden("delta-2")
    assert b"".join(rounded_sample().dump()) == data
    found = Delta.loads(data)
    assert found.manifest == rounded_sample().manifest
    assert found.digest == "c1bedde5c27e6de52bb003b9838e9b56918cd944754ba38a385a856513775dfc"
    assert b"".join(found.dump()) == data


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_values_are_said_as_version_1_says_them(bits):
    """So that deltas of the first version keep their bytes."""
    lossy = Quantization(f"int{bits}", 256, 0.125, 0.0625)
    manifest = Manifest("sst2", "regression", BaseRef("0" * 64, "b"), quantization={"values": lossy})
    said = f'"quantization":{{"bits":{bits},"group":256,"max_error":0.125,"relative_rms":0.0625}}'
    assert manifest.to_json() == GOOD.replace('"quantization":null', said)


def test_any_safetensors_reader_opens_it(tmp_path):
    path = sample().save(tmp_path / "x.delta")
    with safe_open(path, "pt") as file:
        assert file.get_tensor("values").tolist() == [1.0, -2.5]
        assert Manifest.from_json(file.metadata()["deltahub"]) == sample().manifest
    assert Delta.load(path).digest == sample().digest


def test_bytes_depend_on_content_alone():
    tensors = dict(reversed(list(sample().tensors.items())))
    assert dataclasses.replace(sample(), tensors=tensors).digest == sample().digest


def test_no_flipped_byte_goes_unnoticed_or_crashes():
    """A flip is refused, or gives another digest; it never raises anything but our own error."""
    data = golden("delta")
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            changed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            try:
                assert Delta.loads(changed).digest != sample().digest
            except DeltahubError:
                continue


@given(st.binary(max_size=300))
def test_garbage_is_no_delta(data):
    with pytest.raises(FormatError):
        Delta.loads(data)


@given(st.integers(0, 859))
def test_a_cut_delta_is_refused(length):
    with pytest.raises(FormatError):
        Delta.loads(golden("delta")[:length])


def test_other_safetensors_files_are_no_deltas(tmp_path):
    save_file({"values": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="deltahub extract"):
        Delta.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "values and a mask"),
        ({"values": RawTensor.of_bits("F32", (3,), np.zeros(3, np.uint32))}, r"shape \(2,\)"),
        ({"values": RawTensor.of_bits("F32", (2,), np.array([1, 0x7FC00000], np.uint32))}, "1 NaN or infinite"),
        ({"values": RawTensor.of_bits("BF16", (2,), np.array([0x7F80, 0xFF80], np.uint16))}, "2 NaN or infinite"),
        ({"values": RawTensor.of_bits("I32", (2,), np.zeros(2, np.uint32))}, "dtype"),
        ({**sample().tensors, "other": sample().tensors["values"]}, "head"),
        ({**sample().tensors, "values.x": sample().tensors["values"]}, "head"),
    ],
)
def test_tensors_must_fit_the_manifest(tensors, said):
    with pytest.raises(FormatError, match=said):
        Delta(sample().manifest, tensors)


@given(st.floats(width=32))
def test_narrow_rounds_as_torch_does(value):
    import torch

    array = np.array([value], np.float32)
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        expected = RawTensor.of_torch(torch.from_numpy(array).to(dtype))
        if np.isnan(value):
            assert np.isnan(RawTensor.of_bits(name, (1,), rawtensor.narrow(array, name)).float32()[0])
        else:
            assert rawtensor.narrow(array, name)[0] == expected.bits[0]


def test_references():
    assert parse_reference("sst2") == ("sst2", None)
    assert parse_reference("sst2@3") == ("sst2", 3)
    assert parse_reference("sst2:prod") == ("sst2", "prod")
    for bad in ("sst2@0", "sst2@x", "sst2@", "sst2:", "sst2:3", "@1", "sst2@1:prod"):
        with pytest.raises(UsageError):
            parse_reference(bad)


def test_errors_say_what_next():
    with pytest.raises(NewerFormatError, match="the manifest has format 3, this deltahub reads 1 to 2; upgrade"):
        Manifest.from_json(GOOD.replace('"format_version":1', '"format_version":3'))
    with pytest.raises(UsageError, match="try 'my-task'"):
        check_task("My Task")
