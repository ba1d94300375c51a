"""Training tasks on a base: data, methods, the loop, and the three lines for a loop of one's own (`attach`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltahub.tuning.delta_model import DeltaModel as DeltaModel
    from deltahub.tuning.delta_model import attach as attach
    from deltahub.tuning.methods import METHODS as METHODS
    from deltahub.tuning.settings import Settings as Settings

_HOME = {"DeltaModel": "delta_model", "METHODS": "methods", "Settings": "settings", "attach": "delta_model"}
__all__ = sorted(_HOME)  # noqa: PLE0605  (the keys above)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deltahub.tuning' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"deltahub.tuning.{_HOME[name]}"), name)
