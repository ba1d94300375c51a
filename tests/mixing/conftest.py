"""A tiny base of texts, a resident and a mixer on it."""

from __future__ import annotations

import pytest

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("guards"))


@pytest.fixture(scope="module")
def mask(base: Base) -> Mask:
    return Mask.build(base, density=0.1)


@pytest.fixture
def resident(base: Base, mask: Mask) -> Resident:
    return Resident(load_backbone(base), base, mask)


@pytest.fixture
def mixer(resident: Resident) -> Mixer:
    return Mixer(resident, load_tokenizer(resident.base))


def model(resident: Resident, seed: int = 0, kind: str = "text-classification") -> TaskModel:
    delta = random_task(resident.base, resident.mask, kind, task=f"t{seed}", seed=seed)
    return TaskModel(resident, load_tokenizer(resident.base), delta)


def untouched(resident: Resident) -> bool:
    return not any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in resident.module.modules()
    )
