"""What the tests' Hugging Face Hub keeps of a repo."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    date: str
    files: dict[str, tuple[bytes, bool]]  # content, and whether it is LFS
    touched: dict[str, str]  # date of the last commit of each file


class Repo:
    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.tags: dict[str, str] = {}
        self.private = False
        self.add("initial commit", "", {".gitattributes": (_ATTRIBUTES, False)}, [])

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        oid = self.head.oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def add(self, title: str, message: str, added: dict[str, tuple[bytes, bool]], gone: list[str]) -> Commit:
        files = dict(self.head.files) if self.commits else {}
        touched = dict(self.head.touched) if self.commits else {}
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        for path in gone:
            del files[path]
        files.update(added)
        touched.update(dict.fromkeys(added, date))
        oid = hashlib.sha1(f"{uuid.uuid4()}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, message, date, files, touched))
        return self.head
