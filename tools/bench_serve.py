"""The server under load: is an answer ever wrong, and what does a request cost, against peers in the same Ray.

Real base (all-MiniLM-L6-v2, 22.7 M parameters), mask of 0.5 % (113,566 values), tasks of random values, texts of 8 to
24 tokens. Clients run in a process of their own on the same cores; each asks again as soon as it has its answer. Every
part compares answers that it timed with those of a plain pass in another process.

What is expected, before anything was measured:

right         no wrong answer, to the last bit where a text was alone in its pass and else within 1e-5, whether tasks
              are swapped in, mixed, or both in turn; no version that the name did not mean; no request lost
dedicated     one task: at least 0.95 of the throughput of the same application on one materialized model, p99 at most
              1.05 of its; sixty tasks: at least 0.8 of the throughput by Zipf, 0.75 uniformly, since they share passes
multiplexing  at least 5 times the throughput of Ray Serve's own multiplexing with room for 3 models of 60
cliff         1,000 tasks cost what 60 do while the cache holds them, and at most one load more where it does not
swap          below 10 % of the forward pass of one short request
start         time to the first answer independent of the number of tasks: ratio 1
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import common
from serving import right, speed, start, tables
from serving.made import Maker, short_texts
from serving.speed import Setting

PARTS = ("right", "dedicated", "multiplexing", "cliff", "swap", "start")


def measures(maker: Maker, threads: int, *, quick: bool, seconds: float, rounds: int) -> dict[str, Callable[[], Any]]:
    """What each part calls."""
    texts = short_texts(maker)
    clients = (1, 8) if quick else (1, 16, 64)
    setting = partial(Setting, maker, texts, threads, seconds=seconds, rounds=rounds, checked=40 if quick else 400)
    return {
        "right": partial(right.measure, maker, texts, threads, quick=quick),
        "dedicated": partial(speed.dedicated, setting(clients=clients)),
        "multiplexing": partial(speed.multiplexing, setting(clients=clients[1:])),
        "cliff": partial(speed.cliff, setting(clients=clients[:2]), tasks=120 if quick else speed.MANY),
        "swap": partial(speed.swap, setting(clients=(1,))),
        "start": partial(start.measure, maker, texts, threads, quick=quick),
    }


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="not all of them")
    parser.add_argument("--base", help="folder or model id (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each replica, peers' too (default: 1)")
    parser.add_argument("--rounds", type=int, help="of each workload (default: 5; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="of a round (default: 8; 2 with --quick)")
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up then, too
    parts = measures(
        Maker(parsed.base), parsed.threads, quick=parsed.quick, seconds=parsed.seconds or (2 if parsed.quick else 8),
        rounds=parsed.rounds or (1 if parsed.quick else 5),
    )  # fmt: skip
    found = {}
    for part in PARTS:
        if part in parsed.only:
            found[part] = parts[part]()
            if not parsed.json:
                tables.show(part, found[part])
    if parsed.json:
        common.print_json({"threads": parsed.threads, "quick": parsed.quick, **found})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
