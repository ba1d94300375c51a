"""A hub with one of everything, and the counting of cases."""

from __future__ import annotations

import numpy as np
import pytest

from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.stores import MemoryStore
from tests.deltas import random_delta
from tests.faults import soundness
from tests.test_hub import dump, tiny


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> None:
    soundness.begin(request.function.__name__)


@pytest.fixture(scope="session")
def file_mask(base_of) -> Mask:
    return Mask.of_indices(base_of("bert"), np.arange(0, 3000, 7))


@pytest.fixture(scope="session")
def full(base_of, file_mask) -> tuple[MemoryStore, dict[str, bytes]]:
    """A store with three versions, tags, two masks, an orphan blob, and the bytes of what was pushed."""
    hub = Hub.open("memory://test-faults")
    deltas = [tiny("a", 0), random_delta(base_of("bert"), file_mask, 1, task="b", classes=2), tiny("a", 3)]
    for delta in deltas:
        hub.push(delta, ["prod"], mask=file_mask if delta.task == "b" else None)
    hub.push(tiny("gone", 7))
    hub.remove("gone", force=True)
    return hub.store, {"a@1": dump(deltas[0]), "b@1": dump(deltas[1]), "a@2": dump(deltas[2])}
