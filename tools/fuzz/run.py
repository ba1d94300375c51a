"""Fuzzes the readers with atheris: ``python tools/fuzz/run.py [NAME ...] [--seconds 60]``; inputs that break are kept.

Each reader runs in a process of its own, since libFuzzer ends the one that it runs in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).parents[1]
FOUND = Path("fuzz-found")


def main() -> int:
    sys.path.insert(0, str(TOOLS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="readers, such as delta (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (default: 60)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _fuzz(options.names[0], options.seconds)
    from fuzz.readers import readers

    if unknown := set(options.names) - set(readers()):
        parser.error(f"no reader {', '.join(sorted(unknown))}, only {', '.join(readers())}")
    failed = [name for name in options.names or readers() if not _run(name, options.seconds)]
    print(f"broken: {', '.join(failed)}; the inputs are in {FOUND}/" if failed else "no reader broke")
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    FOUND.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__)), name, "--seconds", str(seconds), "--one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    runs = next((line for line in reversed(lines) if line.startswith("Done ")), "it broke")
    print(f"{name:12} {runs}", flush=True)
    if done.returncode:
        print("\n".join(lines[-40:]), flush=True)
    return done.returncode == 0


def _fuzz(name: str, seconds: int) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["deltahub"]):
        from fuzz.readers import readers
    reader = readers()[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(reader.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=2048", "-max_len=16384"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={FOUND}/{name}-", corpus], reader.check)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
