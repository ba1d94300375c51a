"""Signatures in a repo of the Hugging Face Hub come with what they are of, not one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deltahub.hub import Hub
from deltahub.stores.hf import HfStore
from deltahub.syncing import sync
from tests.signed import MINE, OTHER, WANTED, signed_hub
from tests.stores.hf_place import hf, hf_endpoint, new_hf_store  # noqa: F401
from tests.stores.hf_server import HfServer
from tests.test_hub import dump, tiny

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub uploads


def test_a_signed_push_is_one_commit_and_so_are_the_signatures_of_a_sync(
    hf: HfServer,  # noqa: F811
    new_hf_store: Callable[..., HfStore],  # noqa: F811
) -> None:
    hub = Hub.open(new_hf_store().url)
    commits = hf.repos[hub.store.repo].commits  # type: ignore[attr-defined]
    before = len(commits)
    hub.push(tiny("c", 1), ["prod"], sign=MINE)
    assert len(commits) == before + 1
    assert dump(Hub(new_hf_store()).pull("c:prod", require=WANTED)) == dump(tiny("c", 1))
    source = signed_hub()
    sync(source, hub)
    for reference in ("a@1", "a@2", "b@1"):
        source.sign(reference, OTHER)
    before = len(commits)
    assert len(sync(source, hub).signatures) == 3
    assert len(commits) == before + 1
    assert hub.verify().problems == ()
    assert hub.verify().signatures == 7
