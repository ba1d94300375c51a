"""The sandbox of the attacks notices what they must not do."""

from __future__ import annotations

import os
import signal

import pytest

from deltahub.errors import FormatError
from tests.attacks import sandbox
from tests.attacks.attack import MIB, Attack, Place
from tests.attacks.sandbox import Outcome, outcomes


def _refused(_: Place) -> None:
    raise FormatError("no")


def _wrong(_: Place) -> None:
    raise ValueError("no error of ours")


def _writes(place: Place) -> None:
    (place.outside / "new").write_bytes(b"x")
    (place.outside.parent / "file").write_bytes(b"theirs")


def _takes(_: Place) -> None:
    bytearray(b"x" * (100 * MIB))


def _hangs(_: Place) -> None:
    signal.pause()


def _leaks(place: Place) -> None:
    place.write("hub/a", (place.outside / "secret").read_bytes())


def _dies(_: Place) -> None:
    os._exit(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    runs = [_refused, _wrong, _writes, _takes, _hangs, _leaks, _dies, _refused]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "SECONDS", 1)
        attacks = [Attack(number, "", run) for number, run in enumerate(runs)]
        return outcomes(attacks, tmp_path_factory.mktemp("sandbox"))


def test_our_errors_and_others(made):
    assert (made[0].error, made[0].ours, made[0].message) == ("FormatError", True, "no")
    assert (made[1].error, made[1].ours) == ("ValueError", False)
    assert "no error of ours" in made[1].message


def test_what_is_written_elsewhere(made):
    assert set(made[2].changed) == {"outside", "outside/new", "file"}
    assert made[0].changed == ()


def test_memory(made):
    assert made[3].peak >= 100 * MIB
    assert made[0].peak < 16 * MIB


def test_time(made):
    assert (made[4].error, made[4].ours) == ("Hung", False)


def test_a_leak(made):
    assert made[5].leaked
    assert not made[0].leaked


def test_a_death(made):
    assert made.keys() == {0, 1, 2, 3, 4, 5}
