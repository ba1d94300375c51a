"""A library over an empty hub in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deltahub_serve.library import Library

from deltahub import Base, Hub, Mask, Resident
from tests.serve.conftest import Clock
from tests.serve.library.hubs import Loads


@pytest.fixture(scope="session")
def base(serve_base: Base) -> Base:
    return serve_base


@pytest.fixture(scope="session")
def mask(serve_mask: Mask) -> Mask:
    return serve_mask


@pytest.fixture(scope="module")
def resident(base: Base, mask: Mask) -> Resident:
    return Resident.load(base, mask)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub.open(tmp_path / "hub")


@pytest.fixture
def loads(resident: Resident) -> Loads:
    return Loads(resident)


@pytest.fixture
def library(hub: Hub, loads: Loads) -> Iterator[Library]:
    made = Library(hub, loads, clock=Clock())
    yield made
    made.close()
