"""Commands on signatures: keys new, keys show, sign."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cli import common

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.records import VersionRecord
    from deltahub.signing import SigningKey, VerifyKey


def add(commands: common.Commands) -> None:
    keys = commands.add_parser(
        "keys", help="make and show the keys that sign versions",
        description="Make and show the keys that sign versions. Needs `pip install 'deltahub[sign]'`.",
    )  # fmt: skip
    below = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = common.command(
        below, "new", _new, "make a private key; prints its public key, which --require-signature takes",
        "Only you can read the file, and it is never replaced. Who loses it signs with another key from then on.",
    )  # fmt: skip
    new.add_argument("file", metavar="FILE", type=Path, help="the private key to write")
    new.add_argument("--comment", metavar="C", default="", help="words after the public key, such as whose it is")
    new.add_argument(
        "--passphrase", action="store_true",
        help="encrypt the file: asks twice on the terminal, or takes $DELTAHUB_KEY_PASSPHRASE",
    )  # fmt: skip
    show = common.command(below, "show", _show, "print the public key of a private one, or those of a file of them")
    show.add_argument("file", metavar="FILE", type=Path, help="a private key, or a file of public keys")
    common.json_option(show)

    sign = common.command(
        commands, "sign", _sign, "sign a version in the hub, after all of it was read and verified",
        "A signature holds for one version of one task. Tags are not signed: a tag can be made to name another signed "
        "version.",
    )  # fmt: skip
    sign.add_argument("task", metavar="TASK[@N|:TAG]", help="newest version, version N, or what TAG names")
    key_option(sign, "--key")
    common.hub_option(sign)


def key_option(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        name, metavar="FILE", dest="signing_key", default=os.environ.get("DELTAHUB_SIGNING_KEY") or None,
        help="private key to sign with, of `deltahub keys new` (default: $DELTAHUB_SIGNING_KEY)",
    )  # fmt: skip


def signing_key(options: argparse.Namespace) -> SigningKey | None:
    """What `key_option` names; None where it is not given."""
    from deltahub.signing import SigningKey

    if options.signing_key is None:
        return None
    return SigningKey.load(options.signing_key, lambda: _passphrase(f"Passphrase of {options.signing_key}: "))


@dataclass(frozen=True)
class Signer:
    """Who signed a version, and whether the signature is good; None where what could tell is not installed."""

    key: str
    valid: bool | None


def signers(hub: Hub, task: str, records: Sequence[VersionRecord]) -> dict[int, list[Signer]]:
    """Of each version, by number."""
    from deltahub.signatures import of_versions
    from deltahub.signing import is_available

    listed = hub._listing(task).signatures
    if not is_available():
        return {one.number: [Signer(key_id, None) for key_id in sorted(listed.get(one.number, ()))] for one in records}
    found = of_versions(hub.store, records, listed)
    return {number: [Signer(one.key_id, one.valid) for one in signed] for number, signed in found.items()}


def shown(signer: Signer) -> str:
    return signer.key + {True: "", False: " (bad)", None: " (not checked)"}[signer.valid]


def _new(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError
    from deltahub.signing import SigningKey, VerifyKey

    if not options.comment.isprintable():
        raise UsageError("--comment", expected="one line of printable characters")
    if options.file.exists():  # said before anyone types a passphrase
        raise UsageError(f"{options.file} exists", hint="give another name; a key is never replaced")
    made = SigningKey.generate()
    secret = _passphrase("New passphrase: ", again="The same again: ") if options.passphrase else None
    made.save(options.file, secret)
    key = VerifyKey(made.verify_key.raw, options.comment.strip())
    common.words(f"{options.file} is the private key {key.id}; give others this line:")
    print(key.line)


def _show(options: argparse.Namespace) -> None:
    found = _keys_of(options.file)
    if options.json:
        common.print_json([{"id": key.id, "key": key.text, "comment": key.comment} for key in found])
        return
    for key in found:
        common.words(f"{key.id} {common.printable(key.comment)}".rstrip())
        print(key.line)


def _keys_of(path: Path) -> tuple[VerifyKey, ...]:
    from deltahub.signing import SigningKey, VerifyKey, is_private

    if is_private(path):
        return (SigningKey.load(path, lambda: _passphrase(f"Passphrase of {path}: ")).verify_key,)
    return VerifyKey.read(path)


def _sign(options: argparse.Namespace) -> None:
    from deltahub.errors import UsageError

    key = signing_key(options)
    if key is None:
        raise UsageError("no key to sign with", expected="--key FILE", hint="`deltahub keys new FILE` makes one")
    made = common.open_hub(options).sign(options.task, key)
    print(f"{made.reference} signed by {made.key_id}")


def _passphrase(prompt: str, again: str | None = None) -> str:
    """The environment's, else what is typed; twice where ``again`` is given."""
    from getpass import getpass

    from deltahub.errors import UsageError

    if given := os.environ.get("DELTAHUB_KEY_PASSPHRASE"):
        return given
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("a passphrase is needed", hint="set $DELTAHUB_KEY_PASSPHRASE, or run this on a terminal")
    typed = getpass(prompt)
    if again is not None and getpass(again) != typed:
        raise UsageError("the two passphrases differ", hint="run the command again; nothing was written")
    return typed
