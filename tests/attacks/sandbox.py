"""Makes attacks in one child process, each in a folder of its own, and tells what became of them."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import stat
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deltahub.errors import DeltahubError
from tests.attacks.attack import MIB, Attack, Place, material

SECONDS = 60
"""That any attack may take, on a machine however slow."""
_SECRET = b"hush-hush, this is not for the hub"
_ROOM = 2 << 30  # address space beside what is mapped already: threads reserve much that they never touch


@dataclass(frozen=True)
class Outcome:
    """Of one attack.

    Attributes:
        error: type of what it raised; empty where it raised nothing.
        ours: whether that was one of our errors.
        message: its text, or the traceback where it was not.
        peak: bytes of memory that it took at most.
        changed: names of what it changed outside its target.
        leaked: whether the secret beside its target is in a file of the target, or in the message.
    """

    error: str = ""
    ours: bool = True
    message: str = ""
    peak: int = 0
    changed: tuple[str, ...] = ()
    leaked: bool = False


class Hung(BaseException):
    """No `except Exception` may stop it."""


def outcomes(attacks: Sequence[Attack], root: Path) -> dict[int, Outcome]:
    """Outcomes by number; an attack that hung for good or killed the child, and those after it, are missing."""
    material()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _make_all(attacks, root, writer)
    os.close(writer)
    try:
        return {number: Outcome(**fields) for number, fields in _read(reader)}
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read(reader: int) -> Iterable[tuple[int, dict[str, object]]]:
    text = b""
    while select.select([reader], [], [], 2 * SECONDS)[0] and (part := os.read(reader, 1 << 16)):
        text += part
    for line in text.splitlines():
        number, fields = json.loads(line)
        yield number, {**fields, "changed": tuple(fields["changed"])}


def _make_all(attacks: Sequence[Attack], root: Path, writer: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ROOM, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _hang)
        for attack in attacks:
            outcome = _make(attack, root / attack.name)
            os.write(writer, json.dumps([attack.number, asdict(outcome)]).encode() + b"\n")
    finally:
        os._exit(0)


def _hang(*_: object) -> None:
    raise Hung


def _make(attack: Attack, folder: Path) -> Outcome:
    place = Place(folder / "target")
    place.target.mkdir(parents=True)
    place.outside.mkdir()
    (place.outside / "secret").write_bytes(_SECRET)
    (folder / "file").write_bytes(b"mine")
    os.chdir(place.target)
    before = _tree(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = _status("VmRSS")
    error, ours, message = _raised(attack, place)
    peak = _status("VmHWM") - start
    after = _tree(folder)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    leaked = _SECRET.decode() in message or _holds_secret(place.target)
    return Outcome(error, ours, message, peak, tuple(changed), leaked)


def _raised(attack: Attack, place: Place) -> tuple[str, bool, str]:
    signal.alarm(SECONDS)
    try:
        attack.run(place)
    except DeltahubError as error:
        return type(error).__name__, True, str(error)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the next attack must be made too)
        return type(error).__name__, False, traceback.format_exc()[-4000:]
    finally:
        signal.alarm(0)
    return "", True, ""


def _tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that lies below ``folder`` but its target: kind, time and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] != "target":
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[name] = (status.st_mode, status.st_mtime_ns, content)
    return found


def _holds_secret(folder: Path) -> bool:
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size < MIB and _SECRET in path.read_bytes():
            return True
    return False


def _status(name: str) -> int:
    """Bytes that Linux tells of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10
