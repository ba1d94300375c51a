"""A hub in S3: throughput against plain s3fs, and what does not travel twice.

The server is moto in a process of its own on this machine: requests cost CPU there, about 3 ms each, and no time on a
line. 100 tasks of 113,566 fp32 values and a head of two classes, two blobs and about 385 kB each. Everything that was
read is compared byte by byte.

What is expected, before anything was measured:

speed      `sync` to S3 and `pull '*'`, 8 requests at once: at least 0.8 of the throughput of s3fs that puts and gets
           the same objects, blobs and records, 8 at once; less for tasks pushed or pulled one by one, each of which
           waits for the one before; "blobs alone" says what the records cost the peer
again      a second push of the same tasks moves under 1 % of the bytes
broken     a pull killed at 90 % of the bytes, run again in a new process: it moves at most 15 % of all bytes
one_new    a sync of 1,000 tasks with one new: the requests and bytes of one listing and one push
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import common
from transfer import again, speed
from transfer.made import made_delta
from transfer.server import served


def main() -> None:
    parsed = common.options(__doc__).parse_args()
    tasks, many, rounds = (24, 40, 3) if parsed.quick else (100, 1000, 7)
    deltas = [made_delta(f"task-{number:03d}", number) for number in range(tasks)]
    with tempfile.TemporaryDirectory() as name, served() as server:
        folder = Path(name)
        found = {
            "speed": speed.measure(server, deltas, folder, rounds),
            "again": again.push_again(server, deltas),
            "broken": again.broken_pull(server, deltas, folder),
            "one_new": again.one_new(server, folder, many),
        }
    if parsed.json:
        common.print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    moved = found["speed"]
    common.show(
        f"{moved['tasks']} tasks, {moved['blobs']} blobs, {moved['bytes']:,} bytes",
        ["", "s", "MB/s", "requests", "throughput"],
        [
            [name, f"{job['seconds']:.2f}", f"{moved['bytes'] / job['seconds'] / 1e6:.1f}", job["requests"],
             f"{job['throughput']:.2f}"]
            for name, job in moved["jobs"].items()
        ],
    )  # fmt: skip
    rows = []
    for title, part, one in (
        ("push", "again", "first"), ("the same push again", "again", "second"),
        ("sync with one new task", "one_new", "sync"), ("a listing and a push", "one_new", "listing_and_push"),
    ):  # fmt: skip
        counts = found[part][one]
        rows.append([title, counts["requests"], counts["listings"], counts["received"], counts["sent"]])
    common.show("at the server", ["", "requests", "listings", "bytes in", "bytes out"], rows)
    broken = found["broken"]
    print(f"\nsecond push: {found['again']['share']:.2%} of the bytes of the first")
    print(
        f"pull of {broken['bytes']:,} bytes, killed at 90 %: {broken['first']:,} had left the server; the next one "
        f"moved {broken['second']:,}, {broken['second_share']:.1%} of all; {broken['again_share']:.1%} travelled twice"
    )


if __name__ == "__main__":
    main()
