"""Faults that a server of the tests is ordered to make."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next ``times`` requests of ``method`` whose path holds ``part``.

    Each server says which ``kind`` it knows.
    """

    kind: str
    method: str = ""
    part: str = ""
    times: int = 1
    met: int = field(default=0)

    def meets(self, method: str, path: str) -> bool:
        return self.met < self.times and self.method in ("", method) and self.part in path
