"""How much memory this process may take, asked before a size that someone else wrote down is believed."""

from __future__ import annotations

import contextlib
import os
import resource
from functools import cache
from pathlib import Path

from deltahub.errors import CodecError

_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def limit() -> int:
    """Bytes: the machine's memory, what its container may take of it, or the process's own limit; the least of them."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if (own := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        found.append(own)
    return min([*found, *_of_container()])


@cache
def _of_container() -> tuple[int, ...]:
    """Read once: every blob asks, and for a small one this would take as long as the blob."""
    found = []
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
            found.append(int(path.read_text()))
    return tuple(found)


def check(size: int, what: str) -> None:
    """Raises CodecError where ``what`` would take ``size`` bytes and this process cannot have as many."""
    if size > (most := limit()):
        raise CodecError(
            f"{what} claims to hold {size:,} bytes", expected=f"at most {most:,}, the memory that there is",
            hint="if it is truly so large, use a machine with more memory",
        )  # fmt: skip
