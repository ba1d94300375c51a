"""An SFTP server on a socket of this machine, over a folder, that renames as OpenSSH's does."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import paramiko
from paramiko import SFTP_OK, SFTPAttributes, SFTPHandle, SFTPServer, SFTPServerInterface


class _Server(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


def _answered(job):
    """OSError as a code of the protocol, which has few."""

    def run(*arguments):
        try:
            return job(*arguments)
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)

    return run


class _Files(SFTPServerInterface):
    @_answered
    def list_folder(self, path):
        return [SFTPAttributes.from_stat(entry.stat(), entry.name) for entry in os.scandir(path)]

    @_answered
    def stat(self, path):
        return SFTPAttributes.from_stat(os.stat(path))

    @_answered
    def lstat(self, path):
        return SFTPAttributes.from_stat(os.lstat(path))

    @_answered
    def open(self, path, flags, attr):
        handle = SFTPHandle(flags)
        file = os.fdopen(os.open(path, flags, 0o666), "wb" if flags & os.O_WRONLY else "rb")
        handle.readfile = handle.writefile = file
        handle.stat = lambda: SFTPAttributes.from_stat(os.fstat(file.fileno()))
        return handle

    @_answered
    def remove(self, path):
        os.unlink(path)
        return SFTP_OK

    @_answered
    def rename(self, oldpath, newpath):
        os.link(oldpath, newpath)
        os.unlink(oldpath)
        return SFTP_OK

    @_answered
    def posix_rename(self, oldpath, newpath):
        os.replace(oldpath, newpath)
        return SFTP_OK

    @_answered
    def mkdir(self, path, attr):
        os.mkdir(path)
        return SFTP_OK


class SftpFolder:
    """Serves this machine's files to whoever gives a password, and tells its key to a ``known_hosts`` file."""

    def __init__(self, known_hosts: Path) -> None:
        self._key = paramiko.ECDSAKey.generate()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._sessions: list[paramiko.Transport] = []
        known_hosts.write_text(f"[127.0.0.1]:{self.port} {self._key.get_name()} {self._key.get_base64()}\n")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = paramiko.Transport(line)
            session.add_server_key(self._key)
            session.set_subsystem_handler("sftp", SFTPServer, _Files)
            session.start_server(server=_Server())
            self._sessions.append(session)

    def hang_up(self) -> None:
        for session in self._sessions:
            session.close()

    def stop(self) -> None:
        self._listening.close()
        self.hang_up()
