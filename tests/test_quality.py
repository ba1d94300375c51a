"""tools/quality: what is run next, what a table may say, and that a run measures what a hub gives back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltahub.checkpoint import Base
from deltahub.errors import DataError, MismatchError, UsageError
from tests.tuning.conftest import word_task, write_text_base

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
from quality import measure, plot, results, run, table  # noqa: E402
from quality.plan import wanted  # noqa: E402
from quality.results import Job, Protocol  # noqa: E402
from quality.rows import LADDER, METHODS, ROWS, chosen, is_there, next_rate  # noqa: E402
from quality.summary import accuracy, lines, relative_step, stored  # noqa: E402
from quality.workers import Pool  # noqa: E402

PROTOCOL = Protocol("b" * 64, "d" * 64)
PAFI, LIFT = ROWS["pafi"], ROWS["lift"]


def ran(value: float, bytes_: int = 1000) -> dict[str, Any]:
    """What a run measured: ``value`` on validation, a tenth less on what was held out."""
    names = (*results.ROUNDINGS, results.HEAD_INT8)
    return {
        "status": "done", "validation_accuracy": value, "validation_macro_f1": value,
        "test": {name: {"accuracy": value - 0.1, "macro_f1": value} for name in names},
        "bytes": {name: {"rest": bytes_ >> number, "head": 10} for number, name in enumerate(names)},
        "mask_bytes": 0, "trained": 7, "majority": 0.5, "step_seconds": 0.5, "peak_memory": 9, "memory_before": 4,
    }  # fmt: skip


def written(path: Path, runs: dict[Job, dict[str, Any]], tasks: dict[str, int]) -> results.Results:
    results.open_file(path, PROTOCOL, tasks)
    for job, entry in runs.items():
        results.append(path, {"job": vars(job), **entry})
    return results.read(path)


def searched(row: str, task: str, value: float, seeds: int = 3, bytes_: int = 1000) -> dict[Job, dict[str, Any]]:
    """All runs of a row on a task: its middle rate is the best."""
    rates = ROWS[row].rates
    found = {Job(row, task, 0, lr): ran(value - 0.02, bytes_) for lr in rates}
    return found | {Job(row, task, seed, rates[1]): ran(value + seed / 1000, bytes_) for seed in range(seeds)}


def test_every_row_has_its_method_and_rates_on_the_ladder():
    assert all(is_there(row) for row in ROWS.values())
    assert all(set(row.rates) <= set(LADDER) and len(row.rates) == 3 for row in ROWS.values())
    assert {"pafi", "full", "lora-all", "hiwi", "bitfit", "head", "random"} == {r.name for r in ROWS.values() if r.must}
    with pytest.raises(UsageError, match="method 'pafy'"):
        chosen(["pafy"])


def test_the_rate_is_searched_with_the_first_seed_and_the_others_run_at_the_best():
    first = list(wanted([PAFI], ["a"], [0, 1, 2], {}, ()))
    assert first == [Job("pafi", "a", 0, lr) for lr in PAFI.rates]
    runs = {job: ran(0.7 if job.lr == PAFI.rates[1] else 0.6) for job in first}
    assert list(wanted([PAFI], ["a"], [0, 1, 2], runs, ())) == [
        Job("pafi", "a", seed, PAFI.rates[1]) for seed in (1, 2)
    ]


def test_a_search_goes_on_where_the_best_rate_is_the_last_tried():
    runs = {Job("pafi", "a", 0, lr): ran(lr) for lr in PAFI.rates}
    assert list(wanted([PAFI], ["a"], [0, 1], runs, ())) == [Job("pafi", "a", 0, 1e-1)]
    assert list(wanted([PAFI], ["a"], [0, 1], runs, {Job("pafi", "a", 0, 1e-1)})) == [Job("pafi", "a", 1, 3e-2)]
    assert next_rate(1e-3, [1e-3, 3e-3]) == 3e-4
    assert next_rate(3e-3, [1e-3, 3e-3, 1e-2]) is None
    assert next_rate(1e-3, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]) is None


def test_the_held_out_rows_choose_nothing():
    runs = {Job("pafi", "a", 0, lr): ran(0.7 if lr == 1e-2 else 0.6) for lr in PAFI.rates}
    runs[Job("pafi", "a", 0, 3e-3)]["test"]["exact"]["accuracy"] = 0.99
    assert [job.lr for job in wanted([PAFI], ["a"], [0, 1], runs, ())] == [1e-2]


def test_rows_that_must_be_there_come_first_on_every_task():
    order = list(wanted([LIFT, PAFI], ["small", "large"], [0], {}, (), search=False))
    assert [(job.row, job.task) for job in order] == [
        ("pafi", "small"), ("pafi", "large"), ("lift", "small"), ("lift", "large")
    ]  # fmt: skip


def test_a_line_that_was_cut_short_is_run_again(tmp_path):
    path = tmp_path / "r.jsonl"
    job = Job("pafi", "a", 0, 1e-2)
    written(path, {job: ran(0.7), Job("pafi", "a", 1, 1e-2): ran(0.7)}, {"a": 9})
    path.write_bytes(path.read_bytes()[:-30])
    assert list(results.read(path).runs) == [job]
    results.append(path, {"job": vars(job), **ran(0.8)}) if results.open_file(path, PROTOCOL, {"a": 9}) else None
    assert list(results.read(path).runs) == [job]


def test_a_file_holds_one_protocol(tmp_path):
    written(tmp_path / "r.jsonl", {}, {"a": 9})
    with pytest.raises(MismatchError, match="another epochs"):
        results.open_file(tmp_path / "r.jsonl", replace(PROTOCOL, epochs=5), {"a": 9})
    (tmp_path / "other").write_text("[]\n")
    with pytest.raises(DataError, match="no file of results"):
        results.read(tmp_path / "other")


def test_a_mean_over_fewer_tasks_or_seeds_is_never_shown(tmp_path):
    runs = searched("pafi", "a", 0.8) | searched("pafi", "b", 0.6) | searched("lift", "a", 0.9)
    runs |= searched("full", "a", 0.9) | searched("full", "b", 0.9, seeds=2)
    found = {line.row.name: line for line in lines(written(tmp_path / "r.jsonl", runs, {"a": 5, "b": 9, "c": 10}))}
    assert found["pafi"].mean(accuracy()) == pytest.approx(0.601)
    assert found["pafi"].spread(accuracy()) == pytest.approx(0.001)
    assert found["lift"].mean(accuracy()) is None
    assert found["full"].mean(accuracy()) is None
    assert relative_step(found["pafi"], found["full"]) is None
    shown = table.text(results.read(tmp_path / "r.jsonl"))
    assert "| pafi | 0.701 | 0.501 |" in shown
    assert "| full | 0.801 | 0.800 (2 of 3) |" in shown
    assert "| lift | 0.801 | searching |" in shown
    assert "no runs yet on c" in shown
    assert "full misses b: 2 of 3 seeds" in shown


def test_the_stored_bytes_are_those_of_the_rounding(tmp_path):
    (line,) = lines(written(tmp_path / "r.jsonl", searched("pafi", "a", 0.8), {"a": 5}))
    assert [line.mean(stored(name, "rest")) for name in results.ROUNDINGS] == [1000, 500, 250, 125]
    assert line.mean(stored("exact")) == 1010


def test_equal_results_draw_equal_bytes(tmp_path):
    runs = searched("pafi", "a", 0.8) | searched("full", "a", 0.9, bytes_=10**6) | searched("hiwi", "a", 0.7, seeds=1)
    written(tmp_path / "r.jsonl", runs, {"a": 5})
    for name in ("one.svg", "two.svg"):
        assert plot.main([str(tmp_path / "r.jsonl"), "-o", str(tmp_path / name)]) == 0
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert b"pafi" in drawn
    assert b"hiwi" not in drawn


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (part, count) in enumerate((("train", 96), ("validation", 32), ("test", 32))):
        rows = word_task(count, seed)
        (folder / "words").mkdir(exist_ok=True)
        with (folder / "words" / f"{part}.jsonl").open("w") as file:
            for text, label in zip(rows.texts, rows.labels, strict=True):
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    return folder


@pytest.mark.parametrize("row", ["pafi", "gradient", "hiwi-weight", "lora-qv", "shira-all", "pafi linear head"])
def test_a_run_measures_what_a_hub_gives_back(row, base, data, tmp_path):
    protocol = replace(PROTOCOL, base=base.digest, epochs=2, rows=64, max_length=16)
    found = measure.measure(Job(row, "words", 0, 1e-2), protocol, str(base.path), data, tmp_path)
    assert found["train_rows"] == 64
    assert found["trained"] > 0
    assert found["step_seconds"] > 0
    assert set(found["test"]) == set(found["bytes"])
    assert found["bytes"]["exact"]["rest"] > found["bytes"]["bf16"]["rest"] > 0
    assert found["bytes"]["exact"]["head"] > 0
    assert found["test"]["exact"]["accuracy"] >= found["majority"] - 0.2
    assert json.loads(json.dumps(found)) == found


def test_lora_costs_as_many_bytes_as_its_file(base, data, tmp_path):
    protocol = replace(PROTOCOL, epochs=1, rows=16, max_length=16)
    found = measure.measure(Job("lora-all", "words", 0, 1e-2), protocol, str(base.path), data, tmp_path)
    assert 4 * found["trained"] < found["bytes"]["exact"]["rest"] < 4 * found["trained"] + 8000
    assert 2 * found["trained"] < found["bytes"]["bf16"]["rest"] < 2 * found["trained"] + 8000


def test_a_run_that_crashes_is_told_and_stops_no_other(tmp_path):
    script = tmp_path / "measure.py"
    script.write_text(
        "import json, sys\njob = json.load(sys.stdin)['job']\n"
        "if job['seed']: sys.exit('no memory left')\n"
        f"print('words of a library')\nprint(json.dumps({ran(0.7)!r}))\n"
    )
    path = tmp_path / "r.jsonl"
    found = results.open_file(path, PROTOCOL, {"a": 5})

    def ask(so_far):
        return wanted([PAFI], ["a"], [0, 1], so_far.runs, so_far.failed, search=False)

    Pool(path, found, {}, ask, workers=2, script=script).run()
    kept = results.read(path)
    assert list(kept.runs) == [Job("pafi", "a", 0, 1e-2)]
    assert kept.failed == {Job("pafi", "a", 1, 1e-2): "no memory left"}


def test_no_run_starts_after_the_time_limit(tmp_path):
    found = results.open_file(tmp_path / "r.jsonl", PROTOCOL, {"a": 5})
    Pool(tmp_path / "r.jsonl", found, {}, lambda _: [Job("pafi", "a", 0, 1e-2)], time_limit=0.0).run()
    assert not found.runs
    assert not found.failed


def test_what_cannot_be_meant_is_one_line(tmp_path, data, monkeypatch, capsys):
    monkeypatch.delenv("DELTAHUB_DATA", raising=False)
    for arguments, problem in (
        ([], "no data"),
        (["--data", str(tmp_path)], "no tasks in"),
        (["--data", str(data), "--tasks", "sst2"], "task 'sst2'"),
        (["--data", str(data), "--methods", "magic"], "method 'magic'"),
    ):
        assert run.main([*arguments, "--out", str(tmp_path / "r.jsonl")]) == 1
        err = capsys.readouterr().err
        assert problem in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("script", ["run.py", "table.py", "plot.py"])
def test_the_scripts_start_from_anywhere(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOLS / "quality" / script), "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "usage" in done.stdout


def test_every_method_of_the_library_has_a_row():
    from deltahub.tuning.methods import METHODS as OURS

    assert set(OURS) <= set(METHODS)
