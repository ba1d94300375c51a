"""A hub with signed versions, and what an attacker would put into it."""

from __future__ import annotations

import base64
import json

from deltahub import keys, records, sealed
from deltahub.hub import Hub
from deltahub.signing import SigningKey, VerifyKey
from deltahub.stores import MemoryStore
from tests.test_hub import tiny

MINE, OTHER = SigningKey.generate(), SigningKey.generate()
WANTED = (MINE.verify_key,)


def new_hub(name: str = "signed") -> Hub:
    store = MemoryStore(name)
    store.put("hub.json", records.HUB)
    return Hub(store)


def signed_hub() -> Hub:
    """``a`` in two versions and ``b`` in one, all signed by MINE."""
    made = new_hub()
    for task, seed in (("a", 0), ("a", 1), ("b", 2)):
        made.push(tiny(task, seed), sign=MINE)
    return made


def signature_key(task: str, number: int, key: SigningKey = MINE) -> str:
    return keys.signature(task, number, key.verify_key.id)


def everything(hub: Hub) -> dict[str, bytes]:
    return {entry.key: hub.store.get(entry.key) for entry in hub.store.list()}


def put(hub: Hub, key: str, data: bytes) -> None:
    hub.store.put(key, data)


def forged(key: VerifyKey | str, signature: bytes, version: int = 1) -> bytes:
    text = key if isinstance(key, str) else key.text
    return sealed.seal({"format_version": version, "key": text, "signature": base64.b64encode(signature).decode()})


def renamed(data: bytes, task: str, number: int) -> bytes:
    """The record with another name in it, sealed again."""
    document = json.loads(data) | {"task": task, "number": number}
    document.pop("check")
    return sealed.seal(document)
