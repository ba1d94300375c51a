"""Laws of stores over SFTP, on a server of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fsspec.implementations.sftp import SFTPFileSystem

from deltahub.errors import StoreError
from deltahub.stores import open_store
from deltahub.stores.creation import StrictRename
from deltahub.stores.fsspec import FsspecStore
from deltahub.stores.known_hosts import OnlyKnownHosts
from tests.stores.sftp_server import SftpFolder
from tests.stores.test_contract import StoreContract


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SftpFolder]:
    server = SftpFolder(tmp_path_factory.mktemp("ssh") / "known_hosts")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def options(server, tmp_path_factory) -> dict[str, object]:
    known = OnlyKnownHosts(tmp_path_factory.getbasetemp() / "ssh0" / "known_hosts")
    return {
        "port": server.port, "username": "me", "password": "hush", "host_key_policy": known,
        "allow_agent": False, "look_for_keys": False, "skip_instance_cache": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def system(options) -> Iterator[SFTPFileSystem]:
    system = SFTPFileSystem("127.0.0.1", **options)
    yield system
    system.client.close()


class TestSftp(StoreContract):
    replacements = 4

    @pytest.fixture
    def store(self, system, tmp_path) -> FsspecStore:
        return FsspecStore("sftp://host/h", lambda: system, f"{tmp_path}/deep/hub", StrictRename())


def test_after_a_broken_line_the_next_use_connects_anew(server, options, tmp_path):
    made = []

    def connect() -> SFTPFileSystem:
        made.append(SFTPFileSystem("127.0.0.1", **options))
        return made[-1]

    store = FsspecStore("sftp://host/h", connect, str(tmp_path), StrictRename())
    store.put("a", b"x")
    server.hang_up()
    with pytest.raises(StoreError, match="cannot use sftp://host/h"):
        store.get("a")
    assert store.get("a") == b"x"
    for system in made:
        system.client.close()


def test_a_host_whose_key_is_not_known_is_not_talked_to(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store(f"sftp://me@127.0.0.1:{server.port}/hub")
    with pytest.raises(StoreError, match=r"the key of .* is not in .*known_hosts"):
        store.stat("a")
