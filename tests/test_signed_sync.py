"""A sync copies signatures where they hold in the target, and says where they do not."""

from __future__ import annotations

import pytest

from deltahub import keys
from deltahub.hub import Hub
from deltahub.syncing import sync
from tests.signed import MINE, OTHER, WANTED, everything, forged, new_hub, signature_key, signed_hub
from tests.test_hub import dump, tiny


@pytest.fixture
def source() -> Hub:
    return signed_hub()


@pytest.fixture
def target() -> Hub:
    return new_hub("target")


def told(*signed: tuple[str, object]) -> tuple[str, ...]:
    return tuple(f"{reference} by {key.verify_key.id}" for reference, key in signed)  # type: ignore[attr-defined]


def test_signatures_follow_their_versions(source: Hub, target: Hub) -> None:
    expected = told(("a@1", MINE), ("a@2", MINE), ("b@1", MINE))
    assert sync(source, target, dry_run=True).signatures == expected
    assert everything(target).keys() == {"hub.json"}
    report = sync(source, target)
    assert (report.signatures, report.unsigned, report.failed) == (expected, (), ())
    assert dump(target.pull("a@1", require=WANTED)) == dump(tiny("a", 0))
    assert target.verify().problems == ()
    again = sync(source, target)
    assert (again.copied, again.signatures) == ((), ())


def test_a_later_signature_follows_alone(source: Hub, target: Hub) -> None:
    sync(source, target)
    source.sign("a@1", OTHER)
    report = sync(source, target)
    assert (report.copied, report.blobs, report.signatures) == ((), 0, told(("a@1", OTHER)))
    assert [one.valid for one in target.signatures("a@1")] == [True, True]


def test_a_version_under_another_number_stays_unsigned_and_is_told(source: Hub, target: Hub) -> None:
    target.push(tiny("a", 5))
    report = sync(source, target, ["a"])
    assert {copy.source: copy.target for copy in report.copied} == {"a@1": "a@2", "a@2": "a@3"}
    assert (report.signatures, report.unsigned) == ((), ("a@1", "a@2"))
    assert not [key for key in everything(target) if key.endswith(".sig")]
    assert target.verify().problems == ()


def test_the_same_content_in_another_record_stays_unsigned(source: Hub, target: Hub) -> None:
    """Equal digests are one version to a sync, but the signature is of the record's bytes."""
    target.push(tiny("b", 2))
    record = target.version("b")
    changed = type(record)(**{**vars(record), "pushed": "2001-01-01T00:00:00Z"})
    target.store.put(keys.version("b", 1), changed.to_bytes())
    report = sync(source, target, ["b"])
    assert (report.copied, report.signatures, report.unsigned) == ((), (), ("b@1",))
    assert target.verify().problems == ()


def test_a_signature_that_is_not_whole_is_left_out(source: Hub, target: Hub) -> None:
    key = signature_key("b", 1)
    source.store.put(key, source.store.get(key)[:-1])
    report = sync(source, target)
    [failure] = report.failed
    assert "b@1" in failure.what
    assert key not in everything(target)
    assert dump(target.pull("b")) == dump(tiny("b", 2))


def test_a_check_heals_a_signature_in_the_target(source: Hub, target: Hub) -> None:
    sync(source, target)
    key = signature_key("b", 1)
    target.store.put(key, b"x")
    assert sync(source, target).signatures == ()
    assert sync(source, target, check=True).signatures == told(("b@1", MINE))
    assert target.verify().problems == ()


def test_a_check_does_not_replace_a_good_signature_by_a_bad_one(source: Hub, target: Hub) -> None:
    sync(source, target)
    source.store.put(signature_key("b", 1), forged(MINE.verify_key, bytes(64)))
    report = sync(source, target, check=True)
    assert report.signatures == ()
    assert [failure.what for failure in report.failed] == [f"the signature of {told(('b@1', MINE))[0]}"]
    assert [one.valid for one in target.signatures("b")] == [True]


def test_what_the_target_removed_gets_no_signature(source: Hub, target: Hub) -> None:
    sync(source, target)
    target.remove("b")
    report = sync(source, target)
    assert (report.removed, report.signatures, report.unsigned) == (("b@1",), (), ())
    assert not [key for key in everything(target) if key.startswith("tasks/b/") and key.endswith(".sig")]
