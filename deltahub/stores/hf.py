"""A store in a model repo of the Hugging Face Hub, or of a server that speaks its protocol."""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile

from deltahub.digest import BytesLike
from deltahub.errors import ConflictError, NotFoundError, StoreError, UsageError
from deltahub.stores import hf_client
from deltahub.stores.base import AT_ONCE, Entry, Store, check_folder, check_key, is_key, transacted
from deltahub.stores.hf_client import NoRepoError, Patience
from deltahub.stores.hf_reading import Reading
from deltahub.stores.hf_staging import Snapshot, Staging
from deltahub.stores.secrecy import masked

_REPO = re.compile(
    r"(?!(?:datasets|spaces|models|kernels|buckets)/)[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.A
)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9][A-Za-z0-9._/-]{0,199}(?<![/.])")
_COMMIT = re.compile("[0-9a-f]{40}")
_HIDDEN = {".gitattributes", ".gitignore", "README.md"}
_TIMED = re.compile(r"tasks/[^/]+/tag\.[^/]+\.json")
_TIMES_AT_ONCE = 50
_TAKEN = (409, 412)
_AGAIN = 2

Result = TypeVar("Result")


class HfStore:
    """A key is a file of the repo, in ``revision``: a branch, or to read only, a tag or a commit.

    A transaction is one commit on top of the state that it read. A write outside of one is a commit of its own.
    `put_new` outside of one makes the repo where there is none, as private as the organization's setting has it. What
    every repo has (.gitattributes, README.md) can be read and written, and is not listed.

    `Entry.modified` is the time of the last commit for tags of tasks, which move, and 0 for all others: to ask for it
    costs a request for every few files, and nothing but the tags needs it, since a collector that commits on top of
    what it read cannot take from under a push. Times of tags are remembered as long as their content stays.

    What is deleted stays in the repo's history, and takes its space, until that is squashed
    (``HfApi.super_squash_history``).

    The token, the server and proxies are those of huggingface_hub: ``HF_TOKEN``, ``hf auth login``, ``HF_ENDPOINT``.
    """

    remote = True
    at_once = AT_ONCE
    page = "README.md"

    def __init__(
        self, repo: str, revision: str = "main", patience: Patience | None = None, endpoint: str | None = None
    ) -> None:
        if not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision):
            raise UsageError(f"repo {f'{repo}@{revision}'[:200]!a}", expected="hf://org/repo or hf://org/repo@revision")
        self.repo, self.revision = repo, revision
        self.patience = patience or Patience()
        self.api = HfApi(endpoint=endpoint, library_name="deltahub")
        self._branch: bool | None = None
        self._times: dict[tuple[str, str], float] = {}

    @property
    def url(self) -> str:
        return f"hf://{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Staging]:
        staging = Staging(self, Snapshot(self, self._head()))
        yield staging
        if staging.written:
            self._commit(staging)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return iter(self.entries(folder, self.revision))

    def stat(self, key: str) -> Entry | None:
        return self.entry(key, self.revision)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self.read(key, start, size, self.revision)

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        check_key(key)
        transacted(self, lambda inside: inside.put(key, data))

    def put_new(self, key: str, data: BytesLike) -> bool:
        check_key(key)
        try:
            return transacted(self, lambda inside: inside.put_new(key, data))
        except NoRepoError:
            if self.revision != "main":
                raise
        self._call(self.url, lambda: self.api.create_repo(self.repo, exist_ok=True))
        return transacted(self, lambda inside: inside.put_new(key, data))

    def delete(self, key: str) -> None:
        check_key(key)
        transacted(self, lambda inside: inside.delete(key))

    def unfinished(self) -> Iterator[Entry]:
        return iter(())

    def entries(self, folder: str, revision: str) -> Sequence[Entry]:
        """As `list`, of any revision."""
        prefix = check_folder(folder)

        def ask() -> Sequence[RepoFile]:
            tree = [*self.api.list_repo_tree(self.repo, folder or None, recursive=True, revision=revision)]
            if not tree and self._has_something(folder, revision):
                raise StoreError(
                    f"{self.url} lists nothing in {folder or 'it'}, though that is there",
                    hint="check HF_ENDPOINT, the proxy and the network",
                )
            return [item for item in tree if isinstance(item, RepoFile)]

        try:
            found = self._call_again(f"{self.url}/{folder}", ask)
        except NoRepoError:
            raise
        except NotFoundError:
            return []
        chosen = [f for f in found if is_key(f.path) and f.path.startswith(prefix) and not self.is_hidden(f.path)]
        self._ask_times([file for file in chosen if _TIMED.fullmatch(file.path)], revision)
        return [self._entry(file) for file in chosen]

    def entry(self, key: str, revision: str) -> Entry | None:
        """As `stat`, of any revision."""
        check_key(key)
        found = self._call(
            f"{self.url}/{key}",
            lambda: self.api.get_paths_info(self.repo, [key], revision=revision, expand=bool(_TIMED.fullmatch(key))),
        )
        file = next((item for item in found if isinstance(item, RepoFile) and item.path == key), None)
        self._note_times([file] if file else [])
        return self._entry(file) if file else None

    def read(self, key: str, start: int, size: int | None, revision: str) -> bytes:
        """As `get`, of any revision."""
        missing = NotFoundError(f"{self.url} has no {check_key(key)}")
        if size == 0:
            if self.entry(key, revision) is None:
                raise missing
            return b""
        reading = Reading(
            f"{self.api.endpoint}/{self.repo}", revision, key, start, size, self.api._build_hf_headers(),
            self.patience.read,
        )  # fmt: skip
        try:
            return self._call(f"{self.url}/{key}", reading.attempt, lambda: reading.kept)
        except NoRepoError:
            raise
        except NotFoundError:
            raise missing from None

    def _has_something(self, folder: str, revision: str) -> bool:
        """Whether a listing without anything lies: a folder of a repo is there because something is in it."""
        asked = [folder] if folder else [".gitattributes", "hub.json"]
        return bool(self.api.get_paths_info(self.repo, asked, revision=revision))

    def is_hidden(self, key: str) -> bool:
        return key in _HIDDEN

    def check_writable(self) -> None:
        """Raises StoreError where the revision is no branch."""
        if self._branch is None:
            self._head()
        if not self._branch:
            raise StoreError(
                f"{self.url} can be read, but not written",
                expected="a branch",
                got=f"{self.revision}, which never moves",
                hint=f"use hf://{self.repo}, or another of its branches",
            )

    def _head(self) -> str:
        """The commit that the revision is at."""
        if _COMMIT.fullmatch(self.revision):
            self._branch = False
            return self.revision
        refs = self._call(self.url, lambda: self.api.list_repo_refs(self.repo))
        commit = next((ref.target_commit for ref in refs.branches if ref.name == self.revision), None)
        self._branch = commit is not None
        if commit is None:
            commit = self._call(self.url, lambda: self.api.repo_info(self.repo, revision=self.revision)).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise StoreError(f"{self.url}: the server names no commit", got=repr(commit)[:60])
        return commit

    def _commit(self, staging: Staging) -> None:
        """All of ``staging`` at once; raises ConflictError where the branch is not where it was."""
        added = [CommitOperationAdd(key, data) for key, data in staging.written.items() if data is not None]
        gone = [CommitOperationDelete(key, is_folder=False) for key, data in staging.written.items() if data is None]
        if added:  # first, and with no .gitignore in force: what that names would be left out without a word
            upload = partial(
                self.api.preupload_lfs_files, self.repo, added, revision=self.revision, gitignore_content="",
                free_memory=False,
            )  # fmt: skip
            try:
                with hf_client.without_bars():
                    self._call_again(self.url, upload)
            except (RuntimeError, ValueError) as error:
                raise self._refused(hf_client.cause(error)) from error
        mark = f"deltahub {secrets.token_hex(16)}"

        def send() -> None:
            self.api.create_commit(
                self.repo, [*added, *gone], commit_message=_summary(staging.written), commit_description=mark,
                revision=self.revision, parent_commit=staging.snapshot.commit,
            )  # fmt: skip

        self._send(send, lambda: self._is_made(mark, staging.snapshot.commit))

    def _send(self, send: Callable[[], None], is_made: Callable[[], bool]) -> None:
        """A commit whose answer got lost may be there: only when it is not, it is sent again."""
        for failures in itertools.count(1):
            try:
                send()
                return
            except Exception as error:
                found = hf_client.cause(error)
                if not hf_client.is_failure(found):
                    if not isinstance(error, (RuntimeError, *hf_client.ODD)):  # those are huggingface_hub's
                        raise
                    if is_made():
                        return
                    raise self._refused(found) from error
                taken, passing = hf_client.status(found) in _TAKEN, hf_client.is_passing(found)
                if (taken or passing) and is_made():
                    return
                if taken:
                    raise ConflictError(
                        f"{self.url}: others commit there all the time", hint="run the command again"
                    ) from error
                if not passing or failures >= self.patience.attempts:
                    raise hf_client.translated(found, self.url) from error
                hf_client.pause(found, failures, self.patience)

    def _refused(self, error: BaseException) -> StoreError:
        return StoreError(f"{self.url} does not take what is to be written ({masked(str(error))[:300]})")

    def _is_made(self, mark: str, parent: str) -> bool:
        commits = self._call_again(self.url, lambda: self.api.list_repo_commits(self.repo, revision=self.revision))
        later = itertools.takewhile(lambda commit: commit.commit_id != parent, commits)
        return any(mark in f"{commit.title}\n{commit.message}" for commit in later)

    def _ask_times(self, files: Sequence[RepoFile], revision: str) -> None:
        unknown = [file.path for file in files if (file.path, file.blob_id) not in self._times]
        for start in range(0, len(unknown), _TIMES_AT_ONCE):
            paths = unknown[start : start + _TIMES_AT_ONCE]
            ask = partial(self.api.get_paths_info, self.repo, paths, revision=revision, expand=True)
            found = self._call(self.url, ask)
            self._note_times([item for item in found if isinstance(item, RepoFile)])

    def _note_times(self, files: Sequence[RepoFile]) -> None:
        for file in files:
            if file.last_commit is not None:
                self._times[file.path, file.blob_id] = file.last_commit.date.timestamp()

    def _entry(self, file: RepoFile) -> Entry:
        return Entry(file.path, file.size, self._times.get((file.path, file.blob_id), 0.0))

    def _call(self, what: str, request: Callable[[], Result], moved: Callable[[], int] = lambda: 0) -> Result:
        return hf_client.attempted(request, what.rstrip("/"), self.patience, moved)

    def _call_again(self, what: str, request: Callable[[], Result]) -> Result:
        """For requests that huggingface_hub itself makes six times, for up to 23 seconds."""
        return hf_client.attempted(request, what.rstrip("/"), replace(self.patience, attempts=_AGAIN))


def opened(url: str, rest: str) -> Store:
    """The store at ``url``, which is ``hf://`` and ``rest``."""
    repo, at, revision = rest.rstrip("/").partition("@")
    if at and not revision:
        raise UsageError(f"hub {url!a}", expected="hf://org/repo or hf://org/repo@revision")
    return HfStore(repo, revision or "main")


def _summary(written: dict[str, bytes | None]) -> str:
    """The first line of a commit: what people read in the repo's history."""
    tasks = sorted({key.split("/")[1] for key in written if key.startswith("tasks/")})
    shown = ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
    return f"deltahub: {shown}" if tasks else "deltahub"
