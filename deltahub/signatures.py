"""Signatures of versions, each an object beside the record that it is of. FORMAT.md says what is signed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltahub import digest, keys, parallel, sealed, signing
from deltahub.errors import FormatError, IntegrityError, NotFoundError, SignatureError, UsageError
from deltahub.records import VersionRecord
from deltahub.signing import SIGNATURE_BYTES, SigningKey, VerifyKey
from deltahub.stores import Store

if TYPE_CHECKING:
    from deltahub.hub import Hub

_DOMAIN = "deltahub signature 1"
_MOST_BYTES = 4096
_MOST_TOLD = 8
"""Signatures that are read to tell who signed what is refused; anybody who may write can add any number."""


@dataclass(frozen=True)
class Signature:
    """A signature that a hub has.

    Attributes:
        reference: the version, ``sst2@3``.
        key_id: of the key, as the object's name has it.
        key: the public key; None where the object cannot be read.
        problem: why it is not good; None where it is.
    """

    reference: str
    key_id: str
    key: VerifyKey | None
    problem: str | None = None

    @property
    def valid(self) -> bool:
        return self.problem is None


def statement(task: str, number: int, record: str) -> bytes:
    """What is signed: the version's name, and the sha256 of its record, which names every blob by its digest."""
    return f"{_DOMAIN}\n{task}\n{number}\n{record}\n".encode()


def statement_of(record: VersionRecord) -> bytes:
    """A record is written as it was read, so its stored bytes need not be fetched again."""
    return statement(record.task, record.number, digest.of_bytes(record.to_bytes()))


def sign(store: Store, record: VersionRecord, key: SigningKey) -> Signature:
    """Puts the signature of ``record`` beside it; the same key signs the same version with the same bytes."""
    made = key.verify_key
    where = keys.signature(record.task, record.number, made.id)
    signature = signing.to_base64(key.sign(statement_of(record)))
    data = sealed.seal({"format_version": 1, "key": made.text, "signature": signature})
    if not store.put_new(where, data) and store.get(where, 0, _MOST_BYTES) != data:
        store.put(where, data)
    return Signature(record.reference, made.id, made)


def sign_pushed(hub: Hub, task: str, number: int, delta_digest: str, manifest_json: str, key: SigningKey) -> None:
    """Signs what a push made or found, if the record in the hub says what was pushed: others may write there too.

    Raises:
        IntegrityError: it does not.
    """
    record = hub._record(task, number)
    if (record.digest, record.manifest_json) != (delta_digest, manifest_json):
        raise IntegrityError(
            f"the record of {record.reference} is not of what was pushed", hint="it is not signed: see who wrote it"
        )
    sign(hub.store, record, key)


def read_object(data: bytes, what: str) -> tuple[bytes, bytes]:
    """The raw public key and the signature in an object.

    Raises:
        FormatError, IntegrityError: it is none, or lies under another key's id than ``what`` ends in.
    """
    if len(data) > _MOST_BYTES:
        raise FormatError(what, expected=f"at most {_MOST_BYTES} bytes")
    fields = sealed.unseal(data, what, "key signature", newest=1)
    key, signature = fields["key"], fields["signature"]
    if not isinstance(key, str) or not isinstance(signature, str):
        raise FormatError(what, expected="a key and a signature")
    raw, signed = signing.raw_key(key), signing.from_base64(signature, SIGNATURE_BYTES)
    if raw is None or signed is None:
        raise FormatError(what, expected="an ed25519 key and a signature, in base64")
    if signing.key_id(raw) != what.split(".")[-2]:
        raise FormatError(what, expected="the id of its key in its name", got=signing.key_id(raw))
    return raw, signed


def read_whole(store: Store, key: str) -> bytes:
    """The bytes of the object under ``key``, which is whole; whether the signature is good is another question.

    Raises:
        NotFoundError, FormatError, IntegrityError: it is not there, or not whole.
    """
    data = store.get(key, 0, _MOST_BYTES + 1)
    read_object(data, key)
    return data


def of_record(store: Store, record: VersionRecord, key_ids: Iterable[str]) -> list[Signature]:
    """The signatures of ``record`` by these keys, each checked.

    Raises:
        DeltahubError: the package cryptography is not installed.
    """
    signing.need_cryptography()
    return [_read(store, record, key_id) for key_id in sorted(key_ids)]


def of_versions(
    store: Store, found: Sequence[VersionRecord], listed: Mapping[int, Collection[str]]
) -> dict[int, list[Signature]]:
    """As `of_record`, of several versions of a task by number; ``listed`` are the key ids of each."""
    made: dict[int, list[Signature]] = {record.number: [] for record in found}
    signed = {record.number: record for record in found if listed.get(record.number)}
    parallel.for_each(
        lambda number: of_record(store, signed[number], listed[number]),
        signed,
        parallel.threads(store),
        made.__setitem__,
    )
    return made


def check(store: Store, record: VersionRecord, key_ids: Collection[str], wanted: Sequence[VerifyKey]) -> None:
    """Raises SignatureError unless one of ``wanted`` signed ``record``; ``key_ids`` are those that its hub lists."""
    for key in wanted:
        if key.id in key_ids:
            found = _read(store, record, key.id)
            if found.valid and found.key == key:
                return
    told = of_record(store, record, sorted(key_ids)[:_MOST_TOLD])
    good = tuple(one.key_id for one in told if one.valid)
    bad = "; ".join(one.problem for one in told if one.problem)
    raise SignatureError(
        f"{record.reference} is not signed as wanted", wanted=tuple(key.id for key in wanted), signers=good,
        got=(f"one by {', '.join(good)}" if good else "none") + (f" ({bad})" if bad else ""),
        hint="whoever has the private key can add one: `deltahub sign`",
    )  # fmt: skip


def wanted_keys(found: Sequence[VerifyKey]) -> tuple[VerifyKey, ...]:
    """``found``, which must not be empty: no key at all would mean that anything goes."""
    if not found:
        raise UsageError("no key of whose signature one is wanted", expected="one or more")
    return tuple(found)


def _read(store: Store, record: VersionRecord, key_id: str) -> Signature:
    where = keys.signature(record.task, record.number, key_id)
    try:
        raw, signature = read_object(store.get(where, 0, _MOST_BYTES + 1), where)
        key = VerifyKey(raw)
    except (NotFoundError, FormatError, IntegrityError, UsageError) as error:
        return Signature(record.reference, key_id, None, str(error))
    good = key.verify(statement_of(record), signature)
    problem = None if good else f"{where} is no signature of the record of {record.reference} that is there"
    return Signature(record.reference, key_id, key, problem)
