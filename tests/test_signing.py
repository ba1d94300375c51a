"""Signed versions: only what a wanted key signed is given out."""

from __future__ import annotations

import builtins
import importlib.util

import pytest

from deltahub import keys
from deltahub.digest import BytesLike
from deltahub.errors import DeltahubError, SignatureError, StoreError, UsageError
from deltahub.hub import Hub
from deltahub.signing import SigningKey, VerifyKey
from deltahub.stores import MemoryStore
from deltahub.transfer import pull_files
from tests.signed import MINE, OTHER, WANTED, everything, signature_key, signed_hub
from tests.test_hub import dump, tiny


@pytest.fixture
def hub() -> Hub:
    return signed_hub()


def test_what_was_signed_is_pulled_and_its_signer_told(hub: Hub) -> None:
    assert dump(hub.pull("a@1", require=WANTED)) == dump(tiny("a", 0))
    assert dump(hub.pull("a", require=(OTHER.verify_key, *WANTED))) == dump(tiny("a", 1))
    [found] = hub.signatures("a@1")
    assert (found.reference, found.key, found.key_id, found.valid) == ("a@1", WANTED[0], WANTED[0].id, True)
    assert hub.verify().problems == ()
    assert hub.verify().signatures == 3


@pytest.mark.parametrize("reference", ["a", "a@3", "a:prod"])
def test_nothing_else_is_given_out(hub: Hub, reference: str) -> None:
    hub.push(tiny("a", 3), ["prod"])
    with pytest.raises(SignatureError, match=f"a@3 is not signed.*signature by {WANTED[0].id}, found none") as caught:
        hub.pull(reference, require=WANTED)
    assert (caught.value.wanted, caught.value.signers) == ((WANTED[0].id,), ())
    hub.sign("a@3", OTHER)
    with pytest.raises(SignatureError, match=f"found one by {OTHER.verify_key.id}") as caught:
        hub.requiring(WANTED).version(reference)
    assert caught.value.signers == (OTHER.verify_key.id,)
    hub.sign("a@3", MINE)
    assert dump(hub.pull(reference, require=WANTED)) == dump(tiny("a", 3))
    assert len(hub.signatures(reference)) == 2


def test_no_key_at_all_is_no_requirement_that_can_be_made(hub: Hub) -> None:
    with pytest.raises(UsageError, match="one or more"):
        hub.pull("a", require=())


def test_a_glob_gives_out_no_more_than_a_name(hub: Hub, tmp_path) -> None:
    trusted = hub.requiring(WANTED)
    assert [one.task for one in pull_files(trusted, ["*"], tmp_path / "good")] == ["a", "b"]
    hub.push(tiny("b", 3))
    for references in (["*"], ["b"], ["a", "b"]):
        with pytest.raises(SignatureError, match="b@2"):
            pull_files(trusted, references, tmp_path / "none")
    assert not any((tmp_path / "none").glob("*"))


def test_a_push_of_what_is_there_signs_it_once(hub: Hub) -> None:
    hub.push(tiny("c", 0))
    assert hub.signatures("c") == []
    assert not hub.push(tiny("c", 0), sign=MINE).new
    signed = everything(hub)
    assert hub.signatures("c")[0].valid
    hub.push(tiny("c", 0), sign=MINE)
    assert everything(hub) == signed


def test_a_push_that_dies_before_its_signature_is_signed_by_the_next(hub: Hub) -> None:
    class Full(MemoryStore):
        def put_new(self, key: str, data: BytesLike) -> bool:
            if key.endswith(".sig"):
                raise StoreError("no room")
            return super().put_new(key, data)

    store = Full("full")
    for key, data in everything(hub).items():
        store.put(key, data)
    with pytest.raises(StoreError, match="no room"):
        Hub(store).push(tiny("a", 3), ["prod"], sign=MINE)
    whole = Hub(MemoryStore("whole"))
    for entry in list(store.list()):
        whole.store.put(entry.key, store.get(entry.key))
    assert whole.tags("a") == {}
    assert whole.verify().problems == ()
    assert whole.push(tiny("a", 3), ["prod"], sign=MINE).number == 3
    assert dump(whole.pull("a:prod", require=WANTED)) == dump(tiny("a", 3))


def test_reads_ask_for_no_signature_unless_one_is_required(hub: Hub, monkeypatch) -> None:
    asked: list[str] = []
    get = hub.store.get

    def note(key: str, *rest: int | None) -> bytes:
        asked.append(key)
        return get(key, *rest)

    monkeypatch.setattr(hub.store, "get", note)
    hub.pull("a")
    hub.tasks()
    hub.versions("a")
    assert not [key for key in asked if key.endswith(".sig")]
    hub.pull("a", require=WANTED)
    assert [key for key in asked if key.endswith(".sig")] == [signature_key("a", 2)]


def test_removal_takes_the_signatures_along(hub: Hub) -> None:
    hub.sign("a@1", OTHER)
    hub.remove("a@1")
    assert [key for key in everything(hub) if key.startswith("tasks/a/v00000001")] == [keys.tombstone("a", 1)]
    assert hub.signatures("a@2")[0].valid


def test_a_collector_takes_what_a_remover_that_died_left(hub: Hub) -> None:
    hub.store.put(keys.tombstone("a", 1), b"")
    assert hub.verify().problems == ()
    assert signature_key("a", 1) in hub.gc(grace_seconds=0).deleted
    assert hub.gc(grace_seconds=0).deleted == ()
    assert [one.valid for one in hub.signatures("a@2") + hub.signatures("b")] == [True, True]


def test_strangers_are_left_alone(hub: Hub) -> None:
    names = ("v00000001.sig", "v00000001.0123.sig", f"v00000001.{'A' * 16}.sig", f"v99999999.{'a' * 16}.sig")
    for name in names:
        hub.store.put(f"tasks/a/{name}", b"mine")
    assert len(hub.signatures("a@1")) == 1
    assert hub.verify().problems == ()
    hub.gc(grace_seconds=0)
    assert {f"tasks/a/{name}" for name in names} <= set(everything(hub))


def test_every_record_is_written_as_it_was_read(hub: Hub) -> None:
    """The signature is of the stored bytes, and is checked against those that the record would be written as."""
    for task, number in (("a", 1), ("a", 2), ("b", 1)):
        assert hub.version(f"{task}@{number}").to_bytes() == hub.store.get(keys.version(task, number))


def test_without_the_package_everything_else_works(hub: Hub, monkeypatch) -> None:
    find, real = importlib.util.find_spec, builtins.__import__

    def gone(name: str, *rest: object) -> object:
        return None if name == "cryptography" else find(name, *rest)  # type: ignore[arg-type]

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib.util, "find_spec", gone)
    monkeypatch.setattr(builtins, "__import__", refuse)
    hub.pull("a")
    hub.remove("b")
    hub.gc(grace_seconds=0)
    report = hub.verify()
    assert (report.problems, report.signatures, report.unchecked) == ((), 0, 2)
    for call in (SigningKey.generate, lambda: VerifyKey(bytes(32)), lambda: hub.signatures("a")):
        with pytest.raises(DeltahubError, match=r"need cryptography.*pip install 'deltahub\[sign\]'"):
            call()


def test_a_lost_record_is_noticed_where_it_was_signed(hub: Hub) -> None:
    hub.store.delete(keys.version("a", 2))
    [problem] = hub.verify().problems
    assert problem.key == keys.version("a", 2)
    hub.gc(grace_seconds=0)
    assert signature_key("a", 2) in everything(hub)
