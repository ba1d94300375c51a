"""Whom to talk to over SSH: hosts that ~/.ssh/known_hosts has, as `ssh` itself does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramiko import HostKeys, MissingHostKeyPolicy, SSHException


class OnlyKnownHosts(MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuses a host whose key is not known: fsspec would take any, and whoever stands between could be the hub."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path.home() / ".ssh" / "known_hosts"

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        known = HostKeys(str(self.path)) if self.path.is_file() else HostKeys()
        if not known.check(hostname, key):
            raise SSHException(f"the key of {hostname} is not in {self.path}; `ssh {hostname}` asks to add it")
