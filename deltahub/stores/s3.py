"""A store in a bucket of S3, or of any server that speaks its protocol and has conditional writes."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.asyn import sync

from deltahub.digest import BytesLike
from deltahub.errors import NotFoundError, StoreError, UsageError
from deltahub.stores import s3_client
from deltahub.stores.base import AT_ONCE, Entry, WriteByWrite, check_folder, check_key, is_key
from deltahub.stores.s3_client import ConditionError, Patience, told
from deltahub.stores.s3_reading import Reading

_MULTIPART = 64 << 20
"""Bytes from which on an object travels in parts."""
_PART = 16 << 20
_MOST_PARTS = 10_000
_MOST_AT_ONCE = 5 << 30
_PARALLEL = 4
_UPLOADS = ".uploads/"
_PROBES = ".probes/"

Result = TypeVar("Result")
Request = Callable[[Any], Awaitable[Result]]


class S3Store(WriteByWrite):
    """A key is an object below ``prefix`` in ``bucket``. Nothing is asked before the first use.

    Passing failures (a busy server, a line that breaks, also in the middle of a body) are tried again with growing
    waits; what cannot get better (no permission, no bucket) is not. An incomplete multipart upload is what a writer
    that died leaves; `unfinished` names it ``.uploads/<id>/<key>``, which `delete` aborts.

    May be used by several threads, and by processes forked from this one.
    """

    remote = True
    at_once = AT_ONCE

    def __init__(self, bucket: str, prefix: str = "", patience: Patience | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
            raise UsageError(f"bucket {bucket[:100]!a}", expected="s3://bucket or s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = check_folder(prefix.strip("/"))
        self.patience = patience or Patience()
        self._lock = threading.RLock()
        self._system: Any = None
        self._owner = 0
        self._bucket_found = self._conditions_hold = False

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def list(self, folder: str = "") -> Iterator[Entry]:
        return (entry for entry in self._listed(check_folder(folder)) if not entry.key.startswith(_PROBES))

    def stat(self, key: str) -> Entry | None:
        check_key(key)
        try:
            found = self._call(key, lambda client: client.head_object(**self._object(key)))
        except NotFoundError:
            self._find_bucket()
            return None
        told(found, "ContentLength", "LastModified", "ETag")
        return Entry(key, found["ContentLength"], _seconds(found["LastModified"]), _md5(found))

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        reading = Reading(self._object(check_key(key)), start, size)
        try:
            if size == 0:
                self._call(key, lambda client: client.head_object(**self._object(key)))
                return b""
            return self._call(key, reading.attempt, lambda: reading.received)
        except NotFoundError:
            raise NotFoundError(f"{self.url} has no {key}") from None

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        check_key(key)
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        if view.nbytes >= _MULTIPART:
            self._put_parts(key, view)
            return
        body = _bytes(data)
        told(self._call(key, lambda client: client.put_object(**self._object(key), Body=body)), "ETag")

    def put_new(self, key: str, data: BytesLike) -> bool:
        check_key(key)
        if len(data) > _MOST_AT_ONCE:
            raise StoreError(f"{key} of {len(data):,} bytes", expected=f"at most {_MOST_AT_ONCE:,} for a new record")
        self._probe_conditions()
        return self._create(key, _bytes(data))

    def delete(self, key: str) -> None:
        check_key(key)
        with contextlib.suppress(NotFoundError):
            if key.startswith(_UPLOADS):
                _, upload, of = key.split("/", 2)
                self._abort(of, base64.urlsafe_b64decode(upload + "=" * (-len(upload) % 4)).decode())
            else:
                self._call(key, lambda client: client.delete_object(**self._object(key)))

    def unfinished(self) -> Iterator[Entry]:
        marker: dict[str, str] = {}
        while True:
            page = self._uploads(marker)
            for upload in page.get("Uploads", []):
                if not upload["Key"].startswith(self.prefix):  # not all servers look at the prefix
                    continue
                of = upload["Key"].removeprefix(self.prefix)
                name = base64.urlsafe_b64encode(upload["UploadId"].encode()).decode().rstrip("=")
                size = self._uploaded(of, upload["UploadId"])
                yield Entry(f"{_UPLOADS}{name}/{of}", size, _seconds(upload["Initiated"]))
            if not page.get("IsTruncated"):
                break
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        yield from self._listed(_PROBES)

    def _listed(self, folder: str) -> Iterator[Entry]:
        options: dict[str, str] = {"Bucket": self.bucket, "Prefix": self.prefix + folder}
        while True:
            page = told(self._call(folder, lambda client: client.list_objects_v2(**options)), "Name", "IsTruncated")
            self._bucket_found = True
            for found in page.get("Contents", []):
                told(found, "Key", "Size", "LastModified")
                key = found["Key"].removeprefix(self.prefix)
                # What some programs show as a folder is no key, and a server may list what it was not asked for.
                if found["Key"].startswith(options["Prefix"]) and is_key(key):
                    yield Entry(key, found["Size"], _seconds(found["LastModified"]), _md5(found))
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not following or following == options.get("ContinuationToken"):
                raise StoreError(f"{self.url} lists the same page over and over", hint="this server cannot hold a hub")
            options["ContinuationToken"] = following

    def _find_bucket(self) -> None:
        """Raises StoreError where there is no bucket: the answer to `stat` is the same as for a missing object."""
        if not self._bucket_found:
            one = {"Bucket": self.bucket, "Prefix": self.prefix, "MaxKeys": 1}
            told(self._call("", lambda client: client.list_objects_v2(**one)), "Name", "IsTruncated")
            self._bucket_found = True

    def _create(self, key: str, body: bytes) -> bool:
        """An answer that got lost is asked for again, and then the object is there: its writer tells whose it is."""
        writer = secrets.token_hex(16)
        options = {**self._object(key), "Body": body, "IfNoneMatch": "*", "Metadata": {"writer": writer}}
        try:
            told(self._call(key, lambda client: client.put_object(**options)), "ETag")
        except ConditionError:
            return self._writer(key) == writer
        return True

    def _writer(self, key: str) -> str | None:
        try:
            found = self._call(key, lambda client: client.head_object(**self._object(key)))
        except NotFoundError:
            return None
        writer: str | None = found.get("Metadata", {}).get("writer")
        return writer

    def _probe_conditions(self) -> None:
        """Once: a server that ignores ``If-None-Match`` would let two pushers overwrite each other's version.

        AWS itself is known not to.
        """
        with self._lock:
            if self._conditions_hold or s3_client.on_aws(self._connected().s3):
                return
            key = f"{_PROBES}{secrets.token_hex(8)}"
            try:
                held = self._create(key, b"") and not self._create(key, b"")
            finally:
                with contextlib.suppress(StoreError):
                    self.delete(key)
            if not held:
                raise StoreError(
                    f"the server of {self.url} has no conditional writes (If-None-Match), so two pushes could "
                    "overwrite each other",
                    hint="a newer version of it may have them; this hub can be read, but not pushed to",
                )
            self._conditions_hold = True

    def _put_parts(self, key: str, view: memoryview) -> None:
        step = max(_PART, -(-view.nbytes // _MOST_PARTS))
        writer = secrets.token_hex(16)
        made = self._call(
            key, lambda client: client.create_multipart_upload(**self._object(key), Metadata={"writer": writer})
        )
        upload = {**self._object(key), "UploadId": made["UploadId"]}

        def send(number: int) -> dict[str, object]:
            body = bytes(view[number * step : (number + 1) * step])
            request = {**upload, "PartNumber": number + 1, "Body": body}
            sent = self._call(key, lambda client: client.upload_part(**request))
            return {"PartNumber": number + 1, "ETag": told(sent, "ETag")["ETag"]}

        try:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                try:
                    parts = [*pool.map(send, range(-(-view.nbytes // step)))]
                finally:
                    pool.shutdown(cancel_futures=True)
            self._complete(key, {**upload, "MultipartUpload": {"Parts": parts}}, writer)
        except BaseException:
            with contextlib.suppress(StoreError, NotFoundError):
                self._abort(key, made["UploadId"])
            raise

    def _complete(self, key: str, upload: dict[str, Any], writer: str) -> None:
        try:
            self._call(key, lambda client: client.complete_multipart_upload(**upload))
        except NotFoundError:  # done before, and the answer got lost
            if self._writer(key) != writer:
                raise StoreError(f"the upload of {self.url}/{key} was aborted", hint="run the command again") from None

    def _uploads(self, marker: dict[str, str]) -> dict[str, Any]:
        options = {"Bucket": self.bucket, "Prefix": self.prefix, **marker}
        found: dict[str, Any] = self._call("", lambda client: client.list_multipart_uploads(**options))
        return found

    def _uploaded(self, key: str, upload: str) -> int:
        """Bytes of the parts that an incomplete upload has; of its first 1,000 parts where it has more."""
        try:
            found = self._call(key, lambda client: client.list_parts(**self._object(key), UploadId=upload))
        except NotFoundError:
            return 0
        return sum(part["Size"] for part in found.get("Parts", []))

    def _abort(self, key: str, upload: str) -> None:
        self._call(key, lambda client: client.abort_multipart_upload(**self._object(key), UploadId=upload))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def _call(self, key: str, request: Request[Result], moved: Callable[[], int] = lambda: 0) -> Result:
        """Runs ``request`` until it succeeds, fails for good, or has failed too often without moving bytes.

        Raises:
            NotFoundError, ConditionError, StoreError: in the words of `s3_client.translated`.
        """
        what = f"{self.url}/{key}".rstrip("/")
        failures, before = 0, moved()
        while True:
            try:
                system = self._connected()
                result: Result = sync(system.loop, request, system.s3)
                return result
            except Exception as error:  # `is_failure` knows which of them are the place's, and passes on all others
                if not s3_client.is_failure(error):
                    raise
                failures, before = (1 if moved() > before else failures + 1), moved()
                if not s3_client.is_passing(error) or failures >= self.patience.attempts:
                    raise s3_client.translated(error, self.bucket, what) from error
            wait = min(self.patience.wait * 2 ** (failures - 1), self.patience.longest)
            time.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads clients, hides nothing

    def _connected(self) -> Any:
        """The file system of this process: a fork must not use its parent's connections."""
        with self._lock:
            if self._owner != os.getpid():
                self._system, self._owner = s3_client.connect(self.patience), os.getpid()
            return self._system


def _bytes(data: BytesLike) -> bytes:
    return data if isinstance(data, bytes) else bytes(data)


def _seconds(modified: Any) -> float:
    """Whole seconds: one of the two ways to ask for a time has no more."""
    return float(int(modified.timestamp()))


def _md5(found: dict[str, Any]) -> str | None:
    """An ETag is the MD5 of what came in one piece and is not encrypted by a key of one's own."""
    tag = str(found.get("ETag", "")).strip('"')
    sealed = "SSECustomerAlgorithm" in found or str(found.get("ServerSideEncryption", "")).startswith("aws:kms")
    return tag if re.fullmatch("[0-9a-f]{32}", tag) and not sealed else None
