"""Keys that sign versions: ed25519 (RFC 8032). What is signed, and where signatures lie, is in `signatures`."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub import digest
from deltahub.errors import DeltahubError, UsageError
from deltahub.files import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_MOST_FILE = 1 << 20
_MOST_PASSPHRASE = 1023
_PREFIX = "ed25519:"
_MODULUS = 2**255 - 19
_WEAK = {
    0,
    1,
    _MODULUS - 1,
    2707385501144840649318225287225658788936804267575313519463743609750303402022,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
}
"""The y of the points of order 1, 2, 4 and 8: for such a key anybody can make a signature without knowing a secret."""

Passphrase = str | Callable[[], str]
"""A passphrase, or what asks for it, which is called only where it is needed."""


@dataclass(frozen=True)
class VerifyKey:
    """A public key: 32 bytes ``raw``, and a ``comment`` that means nothing.

    Raises:
        UsageError: other bytes than those of a key that only its owner can sign with.
        DeltahubError: the package cryptography is not installed.
    """

    raw: bytes
    comment: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        need_cryptography()
        y = int.from_bytes(self.raw, "little") & ((1 << 255) - 1)
        if len(self.raw) != _KEY_BYTES or y >= _MODULUS or y in _WEAK:
            raise UsageError(f"public key {self.raw[:_KEY_BYTES].hex()}", expected="32 bytes of an ed25519 key")

    @property
    def id(self) -> str:
        """See `key_id`."""
        return key_id(self.raw)

    @property
    def text(self) -> str:
        """``ed25519:<base64>``."""
        return _PREFIX + to_base64(self.raw)

    @property
    def line(self) -> str:
        """``text``, and the comment if there is one."""
        return f"{self.text} {self.comment}".rstrip()

    @staticmethod
    def parse(line: str) -> VerifyKey:
        """The key of ``ed25519:<base64> [comment]``.

        Raises:
            UsageError: anything else.
        """
        text, _, comment = line.strip().partition(" ")
        raw = raw_key(text)
        if raw is None or not comment.isprintable():
            raise UsageError(f"public key {line[:60]!a}", expected=f"{_PREFIX}BASE64 [comment]")
        return VerifyKey(raw, comment.strip())

    @staticmethod
    def read(source: str | Path) -> tuple[VerifyKey, ...]:
        """Keys of ``source``: a key itself, or a file of one or more, one a line; ``#`` begins a comment line.

        Raises:
            UsageError: no such file, no key in it, or a line that is none.
        """
        if not str(source):
            raise UsageError(
                "the name of a key file is empty", expected=f"a public key, {_PREFIX}..., or a file of them"
            )
        if isinstance(source, str) and source.startswith(_PREFIX):
            return (VerifyKey.parse(source),)
        try:
            text = _bytes_of(Path(source), private=False).decode()
        except UnicodeDecodeError:
            raise UsageError(f"{source} is not UTF-8", expected="a file of public keys, one a line") from None
        if "PRIVATE KEY-----" in text:
            raise UsageError(
                f"{source} is a private key", expected="a public one", hint="`deltahub keys show` prints it"
            )
        lines = [line.strip() for line in text.splitlines()]
        found = tuple(VerifyKey.parse(line) for line in lines if line and not line.startswith("#"))
        if not found:
            raise UsageError(f"{source} has no key", expected="one a line")
        return found

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (64 bytes) is this key's of ``message``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):  # ValueError: no point of the curve
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key; made by `generate`, read by `load`."""

    _private: Ed25519PrivateKey = field(repr=False)

    @staticmethod
    def generate() -> SigningKey:
        """Raises DeltahubError where the package cryptography is not installed."""
        need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def load(path: str | Path, passphrase: Passphrase | None = None) -> SigningKey:
        """The key of a PEM file (PKCS 8).

        Args:
            passphrase: asked only where the file is encrypted.

        Raises:
            UsageError: the file cannot be read, others may read it, it is none of ed25519, or its passphrase is
                missing or wrong.
        """
        need_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _bytes_of(Path(path), private=True)
        secret: bytes | None = None
        if b"ENCRYPTED" in data.partition(b"\n")[0]:
            if passphrase is None:
                hint = "set $DELTAHUB_KEY_PASSPHRASE, or run this on a terminal"
                raise UsageError(f"{path} needs its passphrase", hint=hint)
            secret = _secret(passphrase if isinstance(passphrase, str) else passphrase())
        try:
            found = load_pem_private_key(data, secret)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            wrong = (
                "a wrong passphrase, or a damaged file" if secret is not None else "something else, or a damaged file"
            )
            raise UsageError(f"{path}", expected="a private key as `deltahub keys new` makes it", got=wrong) from None
        if not isinstance(found, Ed25519PrivateKey):
            raise UsageError(f"{path}", expected="a private key of ed25519", got="one of another kind")
        return SigningKey(found)

    @property
    def verify_key(self) -> VerifyKey:
        return VerifyKey(self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same each time."""
        return self._private.sign(message)

    def save(self, path: str | Path, passphrase: str | None = None) -> None:
        """Writes a PEM file (PKCS 8) that only its owner may read, whole or not at all.

        Args:
            passphrase: encrypts it.

        Raises:
            UsageError: the file exists, since what a lost key signed cannot be signed again; a passphrase that is
                empty, too long or no text.
            StoreError: it cannot be written.
        """
        from cryptography.hazmat.primitives import serialization as form

        if passphrase == "":
            raise UsageError("an empty passphrase", hint="leave it out, or give one")
        how = form.BestAvailableEncryption(_secret(passphrase)) if passphrase else form.NoEncryption()
        data = self._private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, how)
        if not write_atomic(Path(path), [data], exclusive=True, private=True):
            raise UsageError(f"{path} exists", hint="give another name; a key is never replaced")


def is_available() -> bool:
    """Whether the package cryptography is installed."""
    return importlib.util.find_spec("cryptography") is not None


def is_private(path: Path) -> bool:
    """Whether a file looks like a private key. Raises UsageError where it cannot be read."""
    return b"PRIVATE KEY-----" in _bytes_of(path, private=False)


def need_cryptography() -> None:
    """Raises DeltahubError where the package is not installed."""
    if not is_available():
        raise DeltahubError("signatures need cryptography, which is not installed", hint="pip install 'deltahub[sign]'")


def key_id(raw: bytes) -> str:
    """What a public key goes by: the first 16 hex digits of its sha256."""
    return digest.of_bytes(raw)[:16]


def raw_key(text: str) -> bytes | None:
    """The 32 bytes of ``ed25519:<base64>``, which need be no key; None for another text."""
    return from_base64(text.removeprefix(_PREFIX), _KEY_BYTES) if text.startswith(_PREFIX) else None


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str, size: int) -> bytes | None:
    """``size`` bytes of base64; None for another number, and for text that is not written in the one usual way."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if len(data) == size and to_base64(data) == text else None


def _secret(passphrase: str) -> bytes:
    """Raises UsageError where no file can be encrypted with it."""
    with contextlib.suppress(UnicodeEncodeError):  # bytes that are no text, as a shell may hand them on
        if len(secret := passphrase.encode()) <= _MOST_PASSPHRASE:
            return secret
    raise UsageError("the passphrase", expected=f"at most {_MOST_PASSPHRASE} bytes of text")


def _bytes_of(path: Path, *, private: bool) -> bytes:
    """All of a small regular file; a ``private`` one must be closed to others."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UsageError(f"{path} is no key file", expected="a regular file")
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MOST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UsageError(f"the key file {str(path)[:200]!a} cannot be read ({error})") from None
    if len(data) > _MOST_FILE:
        raise UsageError(f"{path} is no key file", expected=f"at most {_MOST_FILE:,} bytes")
    if private and data.startswith(_PREFIX.encode()):
        raise UsageError(f"{path} is a public key", expected="the private one that belongs to it")
    if private and os.name == "posix" and mode & 0o077:
        raise UsageError(
            f"{path}: others may use it", expected="mode 0600", got=f"{mode:04o}", hint=f"chmod 600 {path}"
        )
    return data
