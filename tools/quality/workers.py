"""Runs jobs in processes of their own, a few at a time, and keeps each result as soon as it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quality.results import Job, Results, append

MEASURE = Path(__file__).with_name("measure.py")


@dataclass
class Pool:
    """Workers that take what is wanted most, until nothing is, or time is up.

    Attributes:
        path: file of ``results``, which grow.
        inputs: ``base``, ``data`` and ``work`` for `measure.py`.
        wanted: what could start now, most wanted first.
        time_limit: seconds after which no run is started any more.
        script: reads a run from stdin and prints what it measured.
    """

    path: Path
    results: Results
    inputs: Mapping[str, str]
    wanted: Callable[[Results], Iterable[Job]]
    workers: int = 2
    threads: int = 1
    time_limit: float | None = None
    script: Path = MEASURE
    _running: dict[Job, subprocess.Popen[str] | None] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopped: bool = False

    def run(self) -> None:
        """Returns when all is done or time is up.

        Raises:
            KeyboardInterrupt: after the runs under way were ended; what had finished is in the file.
        """
        end = None if self.time_limit is None else time.monotonic() + self.time_limit
        threads = [threading.Thread(target=self._work, args=(end,)) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._stop()
            for thread in threads:
                thread.join()
            raise

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            for process in self._running.values():
                if process is not None:
                    process.terminate()
            self._changed.notify_all()

    def _work(self, end: float | None) -> None:
        while (job := self._take(end)) is not None:
            start = time.perf_counter()
            found = self._measure(job)
            with self._changed:
                del self._running[job]
                self._changed.notify_all()
                if self._stopped:
                    return
                self._keep(job, found, time.perf_counter() - start)

    def _take(self, end: float | None) -> Job | None:
        """The next job, as soon as there is one; None when there will be none."""
        with self._changed:
            while not self._stopped and (end is None or time.monotonic() < end):
                job = next((job for job in self.wanted(self.results) if job not in self._running), None)
                if job is not None:
                    self._running[job] = None
                    return job
                if not self._running:
                    return None
                self._changed.wait(None if end is None else max(0.0, end - time.monotonic()))
            return None

    def _measure(self, job: Job) -> dict[str, Any]:
        told = {"job": asdict(job), "protocol": asdict(self.results.protocol), "threads": self.threads, **self.inputs}
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with self._changed:
            if self._stopped:
                return {"status": "failed", "error": "stopped"}
            process = self._running[job] = subprocess.Popen(
                [sys.executable, str(self.script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, env=environment,
                start_new_session=True,  # so that Ctrl-C reaches it through `_stop` only
            )  # fmt: skip
        out, err = process.communicate(json.dumps(told))
        if process.returncode == 0:
            try:
                return {"status": "done", **json.loads(out.splitlines()[-1])}
            except (LookupError, ValueError):
                return {"status": "failed", "error": f"printed no result: {out[-200:]!r}"}
        last = (err.strip().splitlines() or [f"ended with code {process.returncode}"])[-1]
        return {"status": "failed", "error": last[:500]}

    def _keep(self, job: Job, found: dict[str, Any], seconds: float) -> None:
        append(self.path, {"job": asdict(job), **found})
        if found["status"] == "done":
            self.results.runs[job] = found
            exact = found["test"]["exact"]["accuracy"]
            stored = found["bytes"]["exact"]["rest"]
            words = f"validation {found['validation_accuracy']:.4f}, test {exact:.4f}, {stored:,} bytes"
        else:
            self.results.failed[job] = found["error"]
            words = f"FAILED: {found['error']}"
        print(f"{job}: {words} ({seconds:.0f} s)", file=sys.stderr, flush=True)
