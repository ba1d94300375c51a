"""Whoever may write to a hub, but has no private key, gets nothing signed under a name that it was not signed under."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahub import keys, sealed, signatures
from deltahub.digest import of_bytes
from deltahub.errors import DeltahubError, IntegrityError, SignatureError, UsageError
from deltahub.hub import Hub
from deltahub.signing import VerifyKey
from deltahub.stores import MemoryStore
from tests.signed import MINE, OTHER, WANTED, everything, forged, new_hub, put, renamed, signature_key, signed_hub
from tests.test_hub import dump, tiny

ORDER = 2**255 - 19


@pytest.fixture
def hub() -> Hub:
    return signed_hub()


@pytest.mark.parametrize(("task", "number"), [("b", 1), ("a", 1), ("new", 1)])
def test_a_record_under_another_name_does_not_verify(hub: Hub, task: str, number: int) -> None:
    there = everything(hub)
    put(hub, keys.version(task, number), renamed(there[keys.version("a", 2)], task, number))
    put(hub, signature_key(task, number), there[signature_key("a", 2)])
    with pytest.raises(SignatureError, match="is no signature of the record"):
        hub.pull(f"{task}@{number}", require=WANTED)


def test_a_record_moved_as_it_is_is_refused(hub: Hub) -> None:
    there = everything(hub)
    put(hub, keys.version("a", 1), there[keys.version("a", 2)])
    put(hub, signature_key("a", 1), there[signature_key("a", 2)])
    with pytest.raises(DeltahubError, match="the record of a@1"):
        hub.pull("a@1", require=WANTED)


def test_the_signature_of_another_version_does_not_verify(hub: Hub) -> None:
    put(hub, signature_key("a", 2), everything(hub)[signature_key("a", 1)])
    with pytest.raises(SignatureError):
        hub.pull("a@2", require=WANTED)
    [found] = hub.signatures("a@2")
    assert not found.valid
    [problem] = hub.verify().problems
    assert problem.key == signature_key("a", 2)


def test_another_record_under_the_same_name_does_not_verify(hub: Hub) -> None:
    other = new_hub()
    other.push(tiny("a", 7))
    put(hub, keys.version("a", 1), everything(other)[keys.version("a", 1)])
    for key, data in everything(other).items():
        if key.startswith("blobs/"):
            put(hub, key, data)
    assert dump(hub.pull("a@1")) == dump(tiny("a", 7))
    with pytest.raises(SignatureError):
        hub.pull("a@1", require=WANTED)


def test_another_key_under_the_id_of_a_wanted_one_is_refused(hub: Hub) -> None:
    signed = OTHER.sign(signatures.statement_of(hub.version("a@1")))
    put(hub, signature_key("a", 1), forged(OTHER.verify_key, signed))
    with pytest.raises(SignatureError, match="the id of its key in its name"):
        hub.pull("a@1", require=WANTED)
    put(hub, signature_key("a", 1), forged(WANTED[0], signed))
    with pytest.raises(SignatureError, match="is no signature of the record"):
        hub.pull("a@1", require=WANTED)


def test_a_signature_of_something_else_by_the_wanted_key_does_not_verify(hub: Hub) -> None:
    record = hub.store.get(keys.version("a", 1))
    statement = signatures.statement_of(hub.version("a@1"))
    for message in (record, of_bytes(record).encode(), statement.partition(b"\n")[2], statement + b"\n"):
        put(hub, signature_key("a", 1), forged(WANTED[0], MINE.sign(message)))
        with pytest.raises(SignatureError):
            hub.pull("a@1", require=WANTED)


GOOD = forged(WANTED[0], bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"\0" * 64, b"[" * 5000, b"x" * 1_000_000, GOOD[:-1], GOOD + b" ",
        GOOD.replace(b'"key"', b'"key":"a","key"'), GOOD.replace(b'{"check"', b'{"more":1,"check"'),
        forged(WANTED[0], bytes(64), version=2), forged(WANTED[0], bytes(63)), forged(WANTED[0], bytes(65)),
        forged("ed25519:" + "A" * 44, bytes(64)), forged(WANTED[0].text[:-1], bytes(64)),
        forged(WANTED[0].text.removeprefix("ed25519:"), bytes(64)), forged(WANTED[0].text + " c", bytes(64)),
        sealed.seal({"format_version": 1, "key": WANTED[0].text, "signature": 7}),
        sealed.seal({"format_version": 1, "key": None, "signature": ""}),
        sealed.seal({"format_version": True, "key": WANTED[0].text, "signature": ""}),
        sealed.seal({"format_version": 1, "key": WANTED[0].text}),
        sealed.seal({"format_version": 1, "key": WANTED[0].text, "signature": "", "more": 1}),
    ],
)  # fmt: skip
def test_what_is_no_signature_is_refused_and_named(hub: Hub, data: bytes) -> None:
    put(hub, signature_key("a", 1), data)
    with pytest.raises(SignatureError, match=re.escape(signature_key("a", 1))):
        hub.pull("a@1", require=WANTED)
    assert [one.valid for one in hub.signatures("a@1")] == [False]
    assert [problem.key for problem in hub.verify().problems] == [signature_key("a", 1)]
    assert dump(hub.pull("a@1")) == dump(tiny("a", 0))
    hub.sign("a@1", MINE)
    assert hub.verify().problems == ()


EIGHTH = 55188659117513257062467267217118295137698188065244968500265048394206261417927
"""The y of a point of order 8; the other such y is its negative."""


@pytest.mark.parametrize("y", [0, 1, ORDER - 1, EIGHTH, ORDER - EIGHTH])
@pytest.mark.parametrize("sign", [0, 1])
def test_keys_that_anybody_can_sign_with_are_refused(y: int, sign: int) -> None:
    """R = 1 and S = 0 are a signature of one message in eight or more, whatever it says."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    def accepted(message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify((1).to_bytes(32, "little") + bytes(32), message)
        except InvalidSignature:
            return False
        return True

    raw = (y | sign << 255).to_bytes(32, "little")
    if (y, sign) not in ((1, 1), (ORDER - 1, 1)):  # x is 0, which has no other sign
        assert any(accepted(b"%d" % number) for number in range(300))
    with pytest.raises(UsageError, match="public key"):
        VerifyKey(raw)


@pytest.mark.parametrize("y", [ORDER, ORDER + 1, 2**255 - 1])
def test_a_key_is_written_in_one_way(y: int) -> None:
    with pytest.raises(UsageError, match="public key"):
        VerifyKey(y.to_bytes(32, "little"))


def test_a_weak_key_in_a_hub_signs_nothing(hub: Hub) -> None:
    identity = (1).to_bytes(32, "little")
    text = "ed25519:" + base64.b64encode(identity).decode()
    put(hub, keys.signature("a", 1, of_bytes(identity)[:16]), forged(text, identity + bytes(32)))
    assert sorted(one.valid for one in hub.signatures("a@1")) == [False, True]


class Replaced:
    """A hub of one signed version whose objects can be replaced."""

    def __init__(self) -> None:
        self.hub = new_hub()
        self.hub.push(tiny("a", 0), sign=MINE)
        self.good = {key: self.hub.store.get(key) for key in (keys.version("a", 1), signature_key("a", 1))}

    def pull_with(self, key: str, data: bytes) -> None:
        self.hub.store.put(key, data)
        try:
            self.hub.pull("a@1", require=WANTED)
        finally:
            self.hub.store.put(key, self.good[key])


REPLACED = Replaced()


@given(data=st.data(), part=st.sampled_from(sorted(REPLACED.good)), resealed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bit_of_record_or_signature_can_be_turned(data: st.DataObject, part: str, resealed: bool) -> None:
    """Not even by one who makes the checksum fit again."""
    good = REPLACED.good[part]
    turned = bytearray(good)
    turned[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    bad = _sealed_again(bytes(turned)) if resealed else bytes(turned)
    if bad == good:
        return
    with pytest.raises(IntegrityError if not resealed and part.endswith(".sig") else DeltahubError):
        REPLACED.pull_with(part, bad)


def _sealed_again(data: bytes) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:
        return data
    document.pop("check", None)
    return sealed.seal(document)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_no_bytes_are_a_signature(data: bytes) -> None:
    with pytest.raises(SignatureError):
        REPLACED.pull_with(signature_key("a", 1), data)


def test_a_hub_cannot_have_another_content_signed_by_a_push(hub: Hub) -> None:
    """Someone replaces the record between the push and the signature."""
    planted = renamed(hub.store.get(keys.version("b", 1)), "c", 1)

    class Planting(MemoryStore):
        def put_new(self, key: str, data: bytes) -> bool:
            return super().put_new(key, planted if key == keys.version("c", 1) else data)

    store = Planting("planting")
    for key, data in everything(hub).items():
        store.put(key, data)
    with pytest.raises(IntegrityError, match="not of what was pushed"):
        Hub(store).push(tiny("c", 0), sign=MINE)
    assert Hub(store).signatures("c") == []


def test_what_is_damaged_is_not_signed(hub: Hub) -> None:
    blob = keys.blob(hub.version("b").sections[0].data.blob)
    put(hub, blob, b"x" * len(hub.store.get(blob)))
    with pytest.raises(IntegrityError):
        hub.sign("b", OTHER)
    assert len(hub.signatures("b")) == 1
