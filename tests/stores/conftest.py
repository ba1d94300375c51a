"""Places for remote stores: a server on this machine, or the one that DELTAHUB_TEST_S3_ENDPOINT names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from deltahub.stores.s3 import S3Store
from deltahub.stores.s3_client import Patience, connect
from tests.stores.hf_place import hf, hf_endpoint, hf_store, new_hf_store  # noqa: F401 - fixtures
from tests.stores.s3_server import S3Server

QUICK = Patience(attempts=4, wait=0.01, longest=0.05, connect=60, read=60)
ENDPOINT = os.environ.get("DELTAHUB_TEST_S3_ENDPOINT", "")
BUCKET = os.environ.get("DELTAHUB_TEST_S3_BUCKET", "hubs") if ENDPOINT else "hubs"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[S3Server | None]:
    """The server, and the environment that leads to it; None where the tests run against another."""
    with pytest.MonkeyPatch.context() as patch:
        if ENDPOINT:
            patch.setenv("AWS_ENDPOINT_URL", ENDPOINT)
            yield None
            return
        server = S3Server()
        settings = {
            "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush-hush",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        store = S3Store(BUCKET)
        store._call("", lambda client: client.create_bucket(Bucket=BUCKET))
        yield server
        server.stop()


@pytest.fixture
def s3(s3_endpoint: S3Server | None) -> Iterator[S3Server]:
    """The server, for tests that order faults."""
    if s3_endpoint is None:
        pytest.skip("faults can only be ordered from the server of the tests")
    yield s3_endpoint
    s3_endpoint.faults.clear()
    s3_endpoint.requests.clear()


@pytest.fixture(scope="session")
def s3_system(s3_endpoint: S3Server | None) -> object:
    """Connections that most tests share, since a client takes longer to make than they run."""
    return connect(QUICK)


@pytest.fixture
def new_s3_store(s3_system: object) -> Callable[..., S3Store]:
    """Makes stores of one place that no other test uses; ``own`` gives one connections of its own."""
    prefix = f"test/{uuid.uuid4().hex}"

    def make(*, own: bool = False) -> S3Store:
        store = S3Store(BUCKET, prefix, QUICK)
        if not own:
            store._system, store._owner = s3_system, os.getpid()
        return store

    return make


@pytest.fixture
def s3_store(new_s3_store: Callable[..., S3Store]) -> S3Store:
    return new_s3_store()
