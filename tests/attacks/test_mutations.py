"""Good files with something changed: what is read is read the same again, or refused by our own error; nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from fuzz.readers import Reader, readers  # noqa: E402

ODD = [
    None, True, False, 0, -1, 1.5, 1 << 31, 1 << 62, 1 << 63, -(1 << 63), 10**39, 1e308, "", "a", "\0", "..", "\u202e",
    "0" * 64, [], [[]], {}, {"codec": "raw"}, [0] * 20,
]  # fmt: skip
"""Values that a field may be changed to."""


@st.composite
def mutated(draw: st.DrawFn, seed: bytes) -> bytes:
    """One to four flips, cuts, insertions, doublings and splices."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["flip", "cut", "drop", "insert", "double", "splice"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:]
            case "drop":
                del data[start:end]
            case "insert":
                data[start:start] = draw(st.binary(max_size=12))
            case "double":
                data[end:end] = data[start:end]
            case "splice":
                other = draw(st.integers(0, len(data)))
                data[start:end] = data[other : other + 40]
    return bytes(data)


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """The JSON document with one value, somewhere in it, dropped, doubled or made another."""
    path = draw(st.sampled_from(list(_places(document))))
    if not path:
        return draw(st.sampled_from(ODD))
    document = json.loads(json.dumps(document))
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    match draw(st.sampled_from(["odd", "odd", "odd", "drop", "more"])):
        case "odd":
            inner[path[-1]] = draw(st.sampled_from(ODD))
        case "drop":
            del inner[path[-1]]
        case "more" if isinstance(inner, dict):
            inner[f"{path[-1]}x"] = inner[path[-1]]
        case "more":
            inner.append(inner[path[-1]])
    return document


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in the document, itself included."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else ())
    )
    return [path] + [place for step, value in inner for place in _places(value, (*path, step))]


def _files_edited(seed: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header, or whose manifest in it, is edited."""
    end = 8 + int.from_bytes(seed[:8], "little")
    header, data = json.loads(seed[8:end]), seed[end:]
    [(name, text)] = header["__metadata__"].items()

    def packed(changed: Any) -> bytes:
        head = json.dumps(changed).encode()
        return len(head).to_bytes(8, "little") + head + data

    def renamed(manifest: Any) -> bytes:
        return packed({**header, "__metadata__": {name: json.dumps(manifest)}})

    return edited(header).map(packed) | edited(json.loads(text)).map(renamed)


def _changes(reader: Reader) -> st.SearchStrategy[bytes]:
    found = []
    for seed in reader.seeds:
        found.append(mutated(seed))
        if reader.text:
            found.append(edited(json.loads(seed)).map(lambda document: json.dumps(document).encode()))
        elif reader.name in ("blob", "index"):
            line, _, stored = seed.partition(b"\n")
            found.append(edited(json.loads(line)).map(lambda d, s=stored: json.dumps(d).encode() + b"\n" + s))
        else:
            found.append(_files_edited(seed))
    return st.one_of(found)


@pytest.mark.parametrize("name", sorted(readers()))
def test_a_changed_file_is_refused_or_read_the_same_twice(name):
    reader = readers()[name]

    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(_changes(reader))
    def check(data: bytes) -> None:
        reader.check(data)

    check()


@pytest.mark.parametrize("name", sorted(readers()))
def test_what_is_good_is_read(name):
    assert all(readers()[name].check(seed) for seed in readers()[name].seeds)


FOUND = [
    ("lease", b'{"blobs": ["%s", "%s"]}' % (b"0" * 64, b"0" * 64)),
    ("mask", b"\2" + bytes(7) + b"{}"),
]
"""Inputs that broke a reader, or its law, once."""


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_broke_a_reader_once_does_so_no_more(name, data):
    readers()[name].check(data)
