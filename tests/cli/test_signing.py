"""keys, sign, and --require-signature: what a user types, and what comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.signing import SigningKey, VerifyKey
from tests.cli.test_commands import good, run
from tests.deltas import random_delta
from tests.test_hub import tiny

__all__ = ["run"]


@pytest.fixture
def signed(run, monkeypatch) -> Path:
    """A folder with the private keys me and you, their public keys, and a hub: a@1 signed by me, a@2 by nobody."""
    for name in ("DELTAHUB_SIGNING_KEY", "DELTAHUB_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("me", "you"):
        Path(f"{name}.pub").write_text(good(run("keys", "new", name, "--comment", f"{name} at home")))
    for number in (1, 2):
        tiny("a", number).save(f"a{number}.delta")
    good(run("push", "a1.delta", "--sign", "me"))
    good(run("push", "a2.delta", "--tag", "prod"))
    return Path.cwd()


def key_id(name: str) -> str:
    return VerifyKey.read(f"{name}.pub")[0].id


def test_keys_are_made_once_and_shown(run, signed: Path) -> None:
    assert (signed / "me").stat().st_mode & 0o777 == 0o600
    code, out, err = run("keys", "show", "me")
    assert (code, out) == (0, SigningKey.load("me").verify_key.text + "\n")
    assert err.strip() == key_id("me")
    [shown] = json.loads(good(run("keys", "show", "me.pub", "--json")))
    assert shown == {"id": key_id("me"), "key": out.strip(), "comment": "me at home"}
    Path("team").write_text(Path("me.pub").read_text() + Path("you.pub").read_text())
    assert good(run("keys", "show", "team")) == Path("team").read_text()
    before = Path("me").read_bytes()
    code, _, err = run("keys", "new", "me")
    assert code == 2
    assert "me exists" in err
    assert Path("me").read_bytes() == before


def test_only_what_was_signed_is_pulled(run, signed: Path) -> None:
    good(run("pull", "a@1", "-o", "one.delta", "--require-signature", "me.pub"))
    assert Path("one.delta").read_bytes() == Path("a1.delta").read_bytes()
    line = Path("me.pub").read_text().strip()
    for task, keys in (("a", ["me.pub"]), ("a:prod", [line]), ("a@1", ["you.pub"]), ("*", ["me.pub"])):
        target = ["-o", "none"] if task == "*" else ["-o", "none.delta"]
        options = [part for key in keys for part in ("--require-signature", key)]
        code, _, err = run("pull", task, *target, *options)
        assert code == 1, err
        assert "is not signed as wanted" in err
        assert [*Path().glob("none*/*"), *Path().glob("none.delta")] == []
    good(run("pull", "a@1", "-o", "two.delta", "--require-signature", "you.pub", "--require-signature", line))


def test_sign_and_who_signed(run, signed: Path) -> None:
    assert good(run("sign", "a:prod", "--key", "you")) == f"a@2 signed by {key_id('you')}\n"
    rows = json.loads(good(run("versions", "a", "--json")))
    assert [row["signed_by"] for row in rows] == [
        [{"key": key_id("me"), "valid": True}], [{"key": key_id("you"), "valid": True}],
    ]  # fmt: skip
    assert key_id("you") in good(run("versions", "a"))
    code, _, err = run("verify")
    assert code == 0
    assert "2 signatures read; nothing bad" in err
    path = next(Path("hub").rglob(f"v00000002.{key_id('you')}.sig"))
    path.write_bytes(next(Path("hub").rglob(f"v00000001.{key_id('me')}.sig")).read_bytes())
    assert f"{key_id('you')} (bad)" in good(run("versions", "a"))
    code, out, err = run("verify")
    assert code == 1
    assert f"tasks/a/{path.name}: " in out


def test_the_environment_names_a_key(run, signed: Path, monkeypatch) -> None:
    monkeypatch.setenv("DELTAHUB_SIGNING_KEY", "you")
    good(run("push", "a2.delta"))
    assert [one.key_id for one in Hub.open("hub").signatures("a@2")] == [key_id("you")]
    assert good(run("sign", "a@1")) == f"a@1 signed by {key_id('you')}\n"


def test_sync_says_what_stays_unsigned(run, signed: Path) -> None:
    code, out, _ = run("sync", "hub", "same")
    assert code == 0
    assert f"a@1 by {key_id('me')}" in out
    tiny("a", 7).save("other.delta")
    good(run("push", "other.delta", "--hub", "taken"))
    code, out, err = run("sync", "hub", "taken")
    assert code == 0
    assert "a@1 has signatures that stay behind" in err
    assert " by " not in out


def test_other_commands_that_read_a_task_want_the_same(run, signed: Path, base_of, folder_of) -> None:
    base = base_of("bert")
    random_delta(base, Mask.build(base, 0.02), task="t").save("t.delta")
    good(run("push", "t.delta"))
    wanted = ("--require-signature", "me.pub")
    commands = (
        ("inspect", "t"), ("materialize", "t", folder_of("bert"), "-o", "full"), ("merge", "t", "a@1", "-o", "m.delta"),
        ("diff", "t", "t", "--base", folder_of("bert")), ("predict", "t", "text", "--base", folder_of("bert")),
    )  # fmt: skip
    for command in commands:
        code, out, err = run(*command, *wanted)
        assert (code, out) == (1, ""), command
        assert "t@1 is not signed as wanted" in err
    good(run("sign", "t", "--key", "me"))
    good(run("inspect", "t", *wanted))
    code, _, err = run("inspect", "t.delta", *wanted)
    assert code == 2
    assert "t.delta is a file, which has no signature" in err
    code, _, err = run("predict", "t", "text", "--url", "http://127.0.0.1:1", *wanted)
    assert code == 2
    assert "--require-signature means nothing to a server" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sign", "a"), "no key to sign with: expected --key FILE"),
        (("sign", "a", "--key", "nowhere"), "nowhere' cannot be read"),
        (("sign", "a", "--key", "me.pub"), "me.pub is a public key"),
        (("sign", "a", "--key", "a1.delta"), "others may use it"),
        (("push", "a1.delta", "--sign", "nowhere"), "nowhere' cannot be read"),
        (("pull", "a", "--require-signature", "me"), "me is a private key"),
        (("pull", "a", "--require-signature", "nowhere"), "nowhere' cannot be read"),
        (("pull", "a", "--require-signature", "ed25519:AAAA"), "expected ed25519:BASE64"),
        (("pull", "a", "--require-signature", ""), "the name of a key file is empty"),
        (("keys", "show", "a1.delta"), "a1.delta"),
        (("keys", "new", "no/folder/key"), "no/folder"),
        (("keys", "new", "k", "--comment", "a\nb"), "--comment: expected one line"),
        (("keys", "new", "k", "--passphrase"), "a passphrase is needed"),
    ],
)
def test_what_is_refused_is_said_in_one_line(run, signed: Path, arguments: tuple[str, ...], words: str) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, out, err = run(*arguments)
    assert code in (1, 2)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(words, err), err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_passphrase_in_the_environment(run, signed: Path, monkeypatch) -> None:
    monkeypatch.setenv("DELTAHUB_KEY_PASSPHRASE", "open sesame")
    good(run("keys", "new", "shut", "--passphrase"))
    assert "ENCRYPTED" in Path("shut").read_text()
    good(run("sign", "a@2", "--key", "shut"))
    good(run("sign", "a@2", "--key", "me"))
    monkeypatch.setenv("DELTAHUB_KEY_PASSPHRASE", "other")
    code, _, err = run("sign", "a@2", "--key", "shut")
    assert code == 2
    assert "a wrong passphrase" in err


@pytest.mark.parametrize(("typed", "code"), [(("one", "one"), 0), (("one", "two"), 2)])
def test_a_new_passphrase_is_asked_twice_and_not_shown(tmp_path: Path, typed: tuple[str, str], code: int) -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "DELTAHUB_KEY_PASSPHRASE"}
    command = [sys.executable, "-m", "deltahub.cli", "keys", "new", "key", "--passphrase"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for prompt, answer in zip(("New passphrase: ", "The same again: "), typed, strict=True):
            said = b""
            while not said.endswith(prompt.encode()):
                part = process.stderr.read(1)
                assert part, said
                said += part
            os.write(ours, f"{answer}\n".encode())
        _, error = process.communicate(timeout=60)
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = b""
    with contextlib.suppress(OSError):  # nothing to read
        shown = os.read(ours, 4096)
    os.close(ours)
    assert process.returncode == code, error
    assert typed[0].encode() not in shown + error
    assert (tmp_path / "key").exists() == (code == 0)
    if code == 0:
        SigningKey.load(tmp_path / "key", "one")
