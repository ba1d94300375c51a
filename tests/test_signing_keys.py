"""Keys in files and texts, and the golden bytes of FORMAT.md."""

from __future__ import annotations

import base64
import re
from importlib.resources import files

import pytest

from deltahub import keys, sealed, signatures
from deltahub.digest import of_bytes
from deltahub.errors import UsageError
from deltahub.signing import SigningKey, VerifyKey
from tests.signed import MINE, OTHER

TEXT = (files("deltahub") / "FORMAT.md").read_text()


def golden(name: str) -> str:
    found = re.search(rf"^    {name} +(.*)$", TEXT, re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_bytes_are_as_the_text_says() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(golden("private"))))
    assert key.verify_key.text == golden("public")
    assert key.verify_key.id == golden("key id")
    statement = signatures.statement("sst2", 3, of_bytes(b"record"))
    assert statement == golden("statement").replace("\\n", "\n").encode()
    assert (
        sealed.seal(
            {
                "format_version": 1,
                "key": key.verify_key.text,
                "signature": base64.b64encode(key.sign(statement)).decode(),
            }
        )
        == golden("object").encode()
    )
    raw, signature = signatures.read_object(golden("object").encode(), keys.signature("sst2", 3, golden("key id")))
    assert VerifyKey(raw).verify(statement, signature)


def test_a_private_key_is_for_its_owner_only(tmp_path) -> None:
    path = tmp_path / "me.key"
    MINE.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).verify_key == MINE.verify_key
    with pytest.raises(UsageError, match="exists"):
        OTHER.save(path)
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"expected mode 0600, found 0{mode:o}.*chmod 600"):
            SigningKey.load(path)
    assert repr(MINE) == "SigningKey()"


def test_a_passphrase_is_needed_and_asked_for_only_then(tmp_path) -> None:
    def never() -> str:
        raise AssertionError

    MINE.save(tmp_path / "open")
    MINE.save(tmp_path / "shut", "a passphrase ß")
    assert b"ENCRYPTED" in (tmp_path / "shut").read_bytes()
    assert SigningKey.load(tmp_path / "open", never).verify_key == MINE.verify_key
    for given_ in ("a passphrase ß", lambda: "a passphrase ß"):
        assert SigningKey.load(tmp_path / "shut", given_).verify_key == MINE.verify_key
    with pytest.raises(UsageError, match="needs its passphrase"):
        SigningKey.load(tmp_path / "shut")
    for wrong in ("", "a passphrase"):
        with pytest.raises(UsageError, match="a wrong passphrase"):
            SigningKey.load(tmp_path / "shut", wrong)
    with pytest.raises(UsageError, match="empty passphrase"):
        MINE.save(tmp_path / "empty", "")
    for bad in ("\udcff", "ß" * 512):
        with pytest.raises(UsageError, match="expected at most 1023 bytes of text"):
            MINE.save(tmp_path / "empty", bad)
        with pytest.raises(UsageError, match="expected at most 1023 bytes of text"):
            SigningKey.load(tmp_path / "shut", bad)
    assert not (tmp_path / "empty").exists()


def test_what_is_no_private_key_is_refused(tmp_path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    other = X25519PrivateKey.generate().private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = f"{MINE.verify_key.line}\n".encode()
    for data in (b"", b"\0" * 100, public, other, b"-----BEGIN PRIVATE KEY-----\n", b"x" * (2 << 20)):
        path = tmp_path / of_bytes(data)
        path.touch(0o600)
        path.write_bytes(data)
        with pytest.raises(UsageError, match=path.name):
            SigningKey.load(path)
    for path in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(UsageError, match="key file"):
            SigningKey.load(path)


def test_public_keys_are_read_from_text_and_files(tmp_path) -> None:
    mine, other = MINE.verify_key, OTHER.verify_key
    path = tmp_path / "keys"
    path.write_text(f"# the team\n\n{mine.text} me, at home\r\n  {other.text}\n")
    assert VerifyKey.read(path) == (mine, other)
    assert [key.comment for key in VerifyKey.read(str(path))] == ["me, at home", ""]
    assert VerifyKey.read(f"{mine.text} me") == (mine,)
    assert VerifyKey.parse(mine.line) == mine
    MINE.save(tmp_path / "private")
    with pytest.raises(UsageError, match="is a private key"):
        VerifyKey.read(tmp_path / "private")
    for text in (
        "",
        "# nobody\n",
        f"{mine.text}\nme\n",
        "ssh-ed25519 AAAA",
        "\x00",
        mine.text + "\tx",
        "ed25519:" + "A" * 43,
    ):
        path.write_text(text)
        with pytest.raises(UsageError):
            VerifyKey.read(path)
    for source in ("ed25519:", "ed25519:AAAA", mine.text[:-2] + "h=", "nowhere", "", "a\0b", tmp_path):
        with pytest.raises(UsageError):
            VerifyKey.read(source)
