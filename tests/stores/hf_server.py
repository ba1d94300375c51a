"""A Hugging Face Hub on sockets of this machine: what the real client asks of a model repo, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.stores.faults import Fault
from tests.stores.hf_repo import Commit, Repo

__all__ = ["TOKEN", "Commit", "HfServer", "Repo"]

TOKEN = "hf_of_the_tests"
PAGE = 1000
_LFS_BYTES = 16


class HfServer:
    """``url`` is what HF_ENDPOINT would be; ``cdn`` is where LFS files are fetched and uploaded, without any token.

    Kinds of `Fault`: a status (``"503"``, ``"429 0"`` with a Retry-After), ``"drop"`` (done, but no answer comes),
    ``"cut"`` (half of the body), ``"wrong"`` (one bit flipped), ``"redirect URL"``, ``"page"`` (a web page, as a hotel
    has it), ``"empty"`` (``{}``, and nothing done), ``"mute"`` (a commit is made and answered with ``{}``), or
    ``"conflict"`` (another commits just before).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.RLock()
        self._servers = [self._start(_Api), self._start(_Cdn)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _start(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def sent(self, method: str, part: str) -> list[str]:
        return [path for one, path, _ in self.requests if one == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    hub: HfServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def _serve(self) -> None:
        hub, path = self.hub, self.path
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append((self.command, path, headers))
            fault = next((fault for fault in hub.faults if fault.meets(self.command, path)), None)
            if fault:
                fault.met += 1
        self.kind, _, self.detail = fault.kind.partition(" ") if fault else ("", "", "")
        if self.kind.isdigit():
            extra = {"Retry-After": self.detail} if self.detail else {}
            return self.answer(int(self.kind), {"error": "ordered"}, extra)
        if self.kind == "page":
            return self.answer(200, b"<html>Please log in to this network.</html>")
        if self.kind == "empty":
            return self.answer(200, {})
        if self.kind == "redirect":
            return self.answer(302, b"", {"Location": self.detail})
        return self.respond(urlsplit(path))

    def respond(self, url: Any) -> None:
        raise AssertionError(f"{type(self).__name__} says nothing to {url}")

    def answer(
        self, status: int, body: bytes | dict[str, Any] | list[Any], headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.kind == "drop":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.kind == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.kind == "cut":
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def content(self, data: bytes, headers: dict[str, str]) -> None:
        """``data`` or the range of it that was asked for."""
        headers = {**headers, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if not asked:
            return self.answer(200, data, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return self.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        ranged = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return self.answer(206, data[first : last + 1], headers | ranged)


class _Cdn(_Handler):
    def respond(self, url: Any) -> None:
        oid = url.path.strip("/")
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() == oid:
                self.hub.objects[oid] = self.body
            return self.answer(200, b"", {"ETag": f'"{oid}"'})
        return self.content(self.hub.objects[oid], {"ETag": f'"{oid}"'})


class _Api(_Handler):
    def respond(self, url: Any) -> None:
        path, self.query = url.path, parse_qs(url.query)
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        matched = re.fullmatch(
            r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git/info/lfs/objects/(batch|verify)|/(.+))", path
        )
        if not matched:
            return self.fail(404, "RepoNotFound")
        name, lfs, rest = matched.groups()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("authorization") != f"Bearer {TOKEN}"):
            return self.fail(401, "RepoNotFound")
        self.repo, self.name = repo, name
        if lfs:
            return self._batch() if lfs == "batch" else self._verify()
        if rest == "refs":
            return self._refs()
        what, _, rest = rest.partition("/")
        revision, _, rest = rest.partition("/")
        commit = repo.at(unquote(revision))
        if commit is None:
            return self.fail(404, "RevisionNotFound")
        answers = {
            "tree": self._tree, "paths-info": self._paths, "preupload": self._preupload, "commit": self._commit,
            "commits": self._commits, "resolve": self._resolve, "revision": self._info,
        }  # fmt: skip
        return answers[what](commit, unquote(rest))

    def _create(self) -> None:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        with self.hub.lock:
            if name in self.hub.repos:
                return self.answer(
                    409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
                )
            self.hub.repos[name] = Repo()
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def _refs(self) -> None:
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in self.repo.tags.items()]
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.repo.head.oid}
        self.answer(200, {"branches": [branch], "converts": [], "tags": tags})

    def _info(self, commit: Commit, _: str) -> None:
        self.answer(200, {"id": self.name, "sha": commit.oid, "siblings": []})

    def _commits(self, _: Commit, __: str) -> None:
        self.answer(
            200,
            [
                {
                    "id": one.oid,
                    "title": one.title,
                    "message": one.message,
                    "date": one.date,
                    "authors": [{"user": "me"}],
                }
                for one in reversed(self.repo.commits)
            ],
        )

    def _file(self, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
        data, lfs = commit.files[path]
        oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if lfs:
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        if expand:
            found["lastCommit"] = {"id": commit.oid, "title": "", "date": commit.touched[path]}
        return found

    def _tree(self, commit: Commit, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        paths = sorted(path for path in commit.files if path.startswith(prefix))
        if folder and not paths:
            return self.fail(404, "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        items = [self._file(commit, path, False) for path in paths[start : start + PAGE]]
        folders = {path.rpartition("/")[0] for path in paths[start : start + PAGE]} - {""}
        items += [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders)]
        following = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
        links = {"Link": f'<{following}>; rel="next"'} if start + PAGE < len(paths) else {}
        return self.answer(200, items, links)

    def _paths(self, commit: Commit, _: str) -> None:
        asked = parse_qs(self.body.decode())
        expand = asked.get("expand", ["false"])[0].lower() == "true"
        found = [self._file(commit, path, expand) for path in asked["paths"] if path in commit.files]
        folders = [one for one in asked["paths"] if any(path.startswith(f"{one}/") for path in commit.files)]
        found += [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in folders]
        self.answer(200, found)

    def _preupload(self, commit: Commit, _: str) -> None:
        asked = json.loads(self.body)
        ignored = (
            asked["gitIgnore"] if "gitIgnore" in asked else commit.files.get(".gitignore", (b"", False))[0].decode()
        )
        files = []
        for file in asked["files"]:
            lfs = file["size"] >= _LFS_BYTES and not file["path"].endswith((".json", ".md"))
            folders = [line for line in ignored.split() if file["path"].startswith(line)]
            oid = self._file(commit, file["path"], False)["oid"] if file["path"] in commit.files else None
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": bool(folders), "oid": oid})
        self.answer(200, {"files": files})

    def _batch(self) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            found: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                verify = f"{self.hub.url}/{self.name}.git/info/lfs/objects/verify"
                found["actions"] = {"upload": {"href": f"{self.hub.cdn}/{asked['oid']}"}, "verify": {"href": verify}}
            objects.append(found)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _verify(self) -> None:
        known = json.loads(self.body)["oid"] in self.hub.objects
        self.answer(200 if known else 404, {})

    def _commit(self, _: Commit, __: str) -> None:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(403, {"error": "you may only read"})
        lines = [json.loads(line) for line in self.body.splitlines()]
        head, added, gone = lines[0]["value"], {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"]), False
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.answer(400, {"error": f"no object {value['oid']}"})
                added[value["path"]] = self.hub.objects[value["oid"]], True
            else:
                gone.append(value["path"])
        with self.hub.lock:
            if self.kind == "conflict":
                self.repo.add("another's", "", {"other.txt": (uuid.uuid4().bytes, False)}, [])
            if head.get("parentCommit") not in (None, self.repo.head.oid):
                return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            if not set(gone) <= set(self.repo.head.files):
                return self.fail(404, "EntryNotFound")
            made = self.repo.add(head["summary"], head["description"], added, gone)
        url = f"{self.hub.url}/{self.name}/commit/{made.oid}"
        if self.kind == "mute":
            return self.answer(200, {})
        return self.answer(200, {"success": True, "commitUrl": url, "commitOid": made.oid, "pullRequestUrl": None})

    def _resolve(self, commit: Commit, path: str) -> None:
        if path not in commit.files:
            return self.fail(404, "EntryNotFound")
        data, lfs = commit.files[path]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{digest}"'}
        if lfs:
            signed = f"{self.hub.cdn}/{digest}?Expires={int(time.time())}&Signature=secret"
            return self.answer(302, b"", headers | {"Location": signed, "X-Linked-Size": str(len(data))})
        return self.content(data, headers)
