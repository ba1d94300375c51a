"""A001 to A099: names of tasks, tags, versions, keys and hubs."""

from __future__ import annotations

from collections.abc import Callable

from deltahub.errors import NotFoundError, UsageError
from deltahub.hub import Hub
from deltahub.names import check_tag, check_task, parse_reference
from deltahub.stores import open_store
from tests.attacks.attack import Attack, Place


def _both(name: str) -> Callable[[Place], object]:
    """A name that no task and no tag may have: asked of a hub, where it would become a path."""

    def run(place: Place) -> None:
        hub = place.hub()
        for call in (
            lambda: hub.pull(name), lambda: hub.tag("sst2", 1, name), lambda: hub.untag("sst2", name),
            lambda: hub.remove(name, force=True), lambda: hub.task(name), lambda: check_tag(name),
        ):  # fmt: skip
            try:
                call()
            except UsageError:
                continue
            raise AssertionError(f"{name!a} was taken")
        check_task(name)

    return run


def _task(name: str) -> Callable[[Place], object]:
    return lambda _: check_task(name)


def _reference(text: str) -> Callable[[Place], object]:
    return lambda _: parse_reference(text)


def _url(url: str) -> Callable[[Place], object]:
    return lambda _: open_store(url)


def _unknown(place: Place) -> None:
    place.hub().pull("sst2.json")


def _hub_in_a_file(place: Place) -> None:
    Hub.open(place.write("file", b"not a hub") / "hub", create=False)


ATTACKS = [
    Attack(1, "a task or tag `..`", _both(".."), UsageError),
    Attack(2, "a task or tag `../outside/secret`", _both("../outside/secret"), UsageError),
    Attack(3, "a task or tag that is an absolute path", _both("/etc/passwd"), UsageError),
    Attack(4, "a task or tag with `..` inside (`a..b`)", _both("a..b"), UsageError),
    Attack(5, "a task or tag with a NUL", _both("sst2\0.delta"), UsageError),
    Attack(6, "a task or tag with a backslash", _both("..\\secret"), UsageError),
    Attack(7, "a task or tag with a percent escape", _both("%2e%2e"), UsageError),
    Attack(8, "a task or tag with a line break", _both("sst2\n"), UsageError),
    Attack(9, "an empty task or tag", _both(""), UsageError),
    Attack(10, "a Cyrillic look-alike (`ѕst2`)", _both("\u0455st2"), UsageError),
    Attack(11, "a full-width look-alike (`ｓst2`)", _both("\uff53st2"), UsageError),
    Attack(12, "`é` as one character (NFC)", _both("caf\u00e9"), UsageError),
    Attack(13, "`é` as two characters (NFD)", _both("cafe\u0301"), UsageError),
    Attack(14, "digits of another script (`sst٢`)", _both("sst\u0662"), UsageError),
    Attack(15, "a right-to-left override", _both("sst2\u202egnp"), UsageError),
    Attack(16, "a zero-width joiner", _both("ss\u200dt2"), UsageError),
    Attack(17, "half a surrogate pair", _both("sst2\udcff"), UsageError),
    Attack(18, "upper case, which collides on some disks", _both("SST2"), UsageError),
    Attack(19, "a trailing dot, which Windows drops", _both("sst2."), UsageError),
    Attack(20, "a trailing blank, which Windows drops", _both("sst2 "), UsageError),
    Attack(21, "a leading dot, which hides a file", _both(".sst2"), UsageError),
    Attack(22, "a leading dash, which looks like an option", _both("-rf"), UsageError),
    Attack(23, "the Windows device `con`", _task("con"), UsageError),
    Attack(24, "the Windows device `nul.tar`, with an ending", _task("nul.tar"), UsageError),
    Attack(25, "the Windows device `com1`", _task("com1"), UsageError),
    Attack(26, "the Windows device `com¹`, in superscript", _task("com\u00b9"), UsageError),
    Attack(27, "a stream of NTFS (`sst2:secret:$DATA`)", _reference("sst2:secret:$DATA"), UsageError),
    Attack(28, "a name of a million characters", _both("a" * 1_000_000), UsageError),
    Attack(41, "a name of 101 characters", _task("a" * 101), UsageError),
    Attack(42, "a task in a folder (`a/b`)", _both("a/b"), UsageError),
    Attack(29, "version 0", _reference("sst2@0"), UsageError),
    Attack(30, "version -1", _reference("sst2@-1"), UsageError),
    Attack(31, "a version of a million digits", _reference("sst2@" + "9" * 1_000_000), UsageError),
    Attack(32, "a version in digits of another script", _reference("sst2@\u0661"), UsageError),
    Attack(33, "a version in place of a tag (`sst2:3`)", _reference("sst2:3"), UsageError),
    Attack(34, "two versions (`sst2@1@2`)", _reference("sst2@1@2"), UsageError),
    Attack(35, "a task named as another file of the hub", _unknown, NotFoundError),
    Attack(36, "a hub URL with a NUL", _url("file:///a%00b"), UsageError),
    Attack(37, "a hub URL of another machine's disk", _url("file://host/a"), UsageError),
    Attack(38, "a hub URL that chains file systems", _url("zip::https://host/a"), UsageError),
    Attack(39, "a hub URL with `..` past its bucket", _url("gs://bucket/../other"), UsageError),
    Attack(40, "a hub inside a file", _hub_in_a_file, NotFoundError),
]
