"""Store, version, share and serve many fine-tuned tasks of one base model.

Everything public is here; importing it costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltahub import tuning as tuning
    from deltahub.checkpoint import Base as Base
    from deltahub.client import Client as Client
    from deltahub.convert.extract import extract as extract
    from deltahub.convert.materialize import materialize as materialize
    from deltahub.delta import Delta as Delta
    from deltahub.errors import DeltahubError as DeltahubError
    from deltahub.heads import load_tokenizer as load_tokenizer
    from deltahub.hub import Hub as Hub
    from deltahub.hub import TaskVersion as TaskVersion
    from deltahub.manifest import Manifest as Manifest
    from deltahub.mask import Mask as Mask
    from deltahub.merging import merge as merge
    from deltahub.mixing.mixer import Mixable as Mixable
    from deltahub.mixing.mixer import Mixed as Mixed
    from deltahub.mixing.mixer import Mixer as Mixer
    from deltahub.predict import Predictor as Predictor
    from deltahub.resident import Resident as Resident
    from deltahub.sentences import base_task as base_task
    from deltahub.signing import SigningKey as SigningKey
    from deltahub.signing import VerifyKey as VerifyKey
    from deltahub.stores.cached import BlobCache as BlobCache
    from deltahub.stores.paced import Pace as Pace
    from deltahub.syncing import SyncReport as SyncReport
    from deltahub.syncing import sync as sync
    from deltahub.task_model import TaskModel as TaskModel
    from deltahub.tuning.settings import Settings as Settings
    from deltahub.tuning.train import train as train

_HOME = {
    "Base": "checkpoint",
    "BlobCache": "stores.cached",
    "Client": "client",
    "Delta": "delta",
    "DeltahubError": "errors",
    "Hub": "hub",
    "Manifest": "manifest",
    "Mask": "mask",
    "Mixable": "mixing.mixer",
    "Mixed": "mixing.mixer",
    "Mixer": "mixing.mixer",
    "Pace": "stores.paced",
    "Predictor": "predict",
    "Resident": "resident",
    "Settings": "tuning.settings",
    "SigningKey": "signing",
    "SyncReport": "syncing",
    "TaskModel": "task_model",
    "TaskVersion": "hub",
    "VerifyKey": "signing",
    "base_task": "sentences",
    "extract": "convert.extract",
    "load_tokenizer": "heads",
    "materialize": "convert.materialize",
    "merge": "merging",
    "sync": "syncing",
    "train": "tuning.train",
}
__version__ = "0.1.0"
__all__ = ["__version__", "tuning", *sorted(_HOME)]  # noqa: PLE0604  (strings, all of them)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "tuning":
        return import_module("deltahub.tuning")
    if name not in _HOME:
        raise AttributeError(f"module 'deltahub' has no attribute {name!r}")
    return getattr(import_module(f"deltahub.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
