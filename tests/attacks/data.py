"""A701 to A799: files of training data, and of positions chosen elsewhere."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

from deltahub.cli.masks import _positions
from deltahub.errors import DataError, FormatError
from deltahub.tuning.data import sources
from tests.attacks.attack import Attack, Place

Run = Callable[[Place], object]
_DEEP = '{"text":' + "[" * 100_000


def _read(path: Path) -> list[object]:
    source = sources.open_source(path, sources.Columns({"text": "text"}), "train")
    return [row["text"] for _, row in source.rows]


def _file(name: str, data: bytes | str) -> Run:
    return lambda place: _read(place.write(name, data))


def _made(name: str, make: Callable[[Path], object]) -> Run:
    def run(place: Place) -> None:
        make(place.target / name)
        _read(place.target / name)

    return run


def _array(data: bytes) -> Run:
    return lambda place: _positions(place.write("x.npy", data))


class _Command:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ../outside/pwned",)


def _npy(head: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head.encode() + data


ATTACKS = [
    Attack(701, "training data that is a pipe", _made("x.jsonl", os.mkfifo), DataError),
    Attack(702, "training data that is a link to /dev/zero", _made("x.csv", lambda path: path.symlink_to("/dev/zero")),
           DataError),
    Attack(703, "training data that is a link to itself", _made("x.tsv", lambda path: path.symlink_to(path)),
           DataError),
    Attack(704, "a row of 100,000 nested lists", _file("x.jsonl", _DEEP), DataError),
    Attack(705, "a row with a key twice", _file("x.jsonl", '{"text":"a","text":"b"}'), DataError),
    Attack(706, "a row with a number of 10,000 digits", _file("x.jsonl", '{"text":"a","n":' + "9" * 10_000 + "}"),
           DataError),
    Attack(707, "rows that are not UTF-8", _file("x.jsonl", b'{"text":"\xff"}'), DataError),
    Attack(708, "a row that is no object", _file("x.jsonl", "[1]"), DataError),
    Attack(709, "a CSV field of 200,000 characters, never closed", _file("x.csv", 'text\n"' + "a" * 200_000),
           DataError),
    Attack(710, "a CSV row of 100,000 columns", _file("x.csv", "text\n" + "," * 100_000), DataError),
    Attack(711, "garbage named .parquet", _file("x.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"), DataError,
           memory=256 << 20),
    Attack(712, "positions that are a pickle", _array(pickle.dumps(_Command())), FormatError),
    Attack(713, "positions that are an array of pickles",
           _array(_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps([_Command()]))),
           FormatError),
    Attack(714, "positions whose header claims a terabyte",
           _array(_npy("{'descr': '<i8', 'fortran_order': False, 'shape': (137438953472,), }\n", bytes(8))),
           FormatError),
    Attack(715, "positions whose header is a program",
           _array(_npy("__import__('os').system('touch ../outside/pwned')\n")), FormatError),
]  # fmt: skip
