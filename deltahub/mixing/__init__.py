"""Many tasks in one forward pass: the resident stays at the base's values, and each row gets its own task's changes."""

from deltahub.mixing.mixer import Mixable, Mixed, Mixer

__all__ = ["Mixable", "Mixed", "Mixer"]
