"""The way to the tests' Hugging Face Hub: the one place where huggingface_hub may go online."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from deltahub.stores.hf import HfStore
from deltahub.stores.hf_client import Patience
from tests.stores.hf_server import TOKEN, HfServer, Repo

QUICK = Patience(attempts=4, wait=0.01, longest=0.05, read=60)


@pytest.fixture(scope="module")
def hf_endpoint() -> Iterator[HfServer]:
    """The server; huggingface_hub reads its environment once, so its constants are set."""
    server = HfServer()
    disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
    enable_progress_bars()
    server.stop()


@pytest.fixture
def hf(hf_endpoint: HfServer) -> Iterator[HfServer]:
    yield hf_endpoint
    hf_endpoint.faults.clear()
    hf_endpoint.requests.clear()


@pytest.fixture
def new_hf_store(hf: HfServer) -> Callable[..., HfStore]:
    """Makes stores of one repo that no other test uses, each as another process would."""
    name = f"team/{uuid.uuid4().hex}"
    hf.repos[name] = Repo()
    return lambda revision="main": HfStore(name, revision, QUICK)


@pytest.fixture
def hf_store(new_hf_store: Callable[..., HfStore]) -> HfStore:
    return new_hf_store()
