"""The GLUE runner on small data in GLUE's own columns: what it loads, runs, remembers and refuses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

GLUE = Path(__file__).parents[1] / "tools" / "glue"
sys.path.insert(0, str(GLUE))

import glue_plan  # noqa: E402
import glue_tasks  # noqa: E402
import run as glue  # noqa: E402

from deltahub.checkpoint import Base  # noqa: E402
from deltahub.errors import DataError, UsageError  # noqa: E402
from deltahub.mask import Mask  # noqa: E402
from tests.tuning.conftest import WORDS, write_text_base  # noqa: E402

FIRST, SECOND = WORDS[:3], WORDS[3:6]


def rows(task: str, count: int, seed: int) -> list[dict[str, object]]:
    """``count`` rows in the columns of a GLUE task, whose label can be told from the words."""
    choose = random.Random(seed)
    found: list[dict[str, object]] = []
    for index in range(count):
        label = choose.randrange(3 if task == "mnli" else 2)
        words = " ".join(choose.choices([FIRST, SECOND, WORDS[6:9]][label], k=4))
        other = " ".join(choose.choices(WORDS[10:], k=4))
        columns = glue_tasks.TASKS[task].texts
        found.append({**dict(zip(columns, (words, other), strict=False)), "label": label, "idx": index})
        if task == "stsb":
            found[-1]["label"] = label * 5.0
    return found


def write(folder: Path, task: str, part: str, found: list[dict[str, object]]) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "rte", "stsb", "mnli", "cola"):
        write(folder, task, "train", rows(task, 16, 1))
        write(folder, task, "validation", rows(task, 16, 2))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("glue-base"), "roberta")


def configure(path: Path, tasks: list[str], methods: dict[str, object], other: dict[str, object] | None = None) -> Path:
    one = {"epochs": 1, "batch_size": 16, "max_length": 24}
    document: dict[str, object] = {
        "seeds": [1, 2], "settings": {"warmup": 0.06}, "tasks": dict.fromkeys(tasks, one), "methods": methods,
        "tables": {"main": {"tasks": tasks, "methods": list(methods)}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document | (other or {})))
    return path


def test_the_configuration_plans_the_whole_table_of_the_paper():
    table = glue_plan.read(GLUE / "config.yaml", "main")
    assert set(table.tasks) == set(glue_tasks.TASKS)
    assert {"pafi", "hiwi", "hiwi-weight", "bitfit", "full", "random"} == set(table.methods)
    assert len(table.seeds) == 5
    for cell in table.cells:
        settings = cell.run(cell.rates[0], 1)
        assert settings.warmup == 0.06
        assert 128 <= settings.max_length <= 512
        assert settings.lr in cell.rates


@pytest.mark.parametrize(
    ("task", "kind", "names"),
    [
        ("sst2", "text-classification", ("negative", "positive")),
        ("rte", "text-classification", ("entailment", "not_entailment")),
        ("mnli", "text-classification", ("contradiction", "entailment", "neutral")),
        ("stsb", "regression", ()),
    ],
)
def test_rows_are_read_from_glue_columns_under_glue_names(data, task, kind, names):
    train, validation = glue_tasks.load(task, data)
    assert (train.kind, train.names, len(train), len(validation)) == (kind, names, 16, 16)
    assert (train.pairs is None) == (task == "sst2")
    first = rows(task, 16, 1)[0]
    assert train.texts[0] == first[glue_tasks.TASKS[task].texts[0]]
    expected = first["label"] if task == "stsb" else glue_tasks.TASKS[task].names[first["label"]]
    assert train.labels[0] == expected


def test_a_dataset_of_the_hub_reads_as_the_same_rows_in_files_do(data, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", _hub_dataset)
    for task in ("sst2", "stsb", "mnli"):
        assert glue_tasks.load(task) == glue_tasks.load(task, data)


def _hub_dataset(repository: str, task: str):
    """What `datasets.load_dataset` gives for GLUE: class labels with names, and a test split without any."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    assert repository == "nyu-mll/glue"
    known = glue_tasks.TASKS[task]
    label = ClassLabel(names=list(known.names)) if known.names else Value("float32")
    features = Features({**dict.fromkeys(known.texts, Value("string")), "label": label, "idx": Value("int32")})
    parts = {"train": rows(task, 16, 1), known.validation: rows(task, 16, 2)}
    parts["test"] = [row | {"label": -1} for row in rows(task, 4, 3)]
    return DatasetDict({part: Dataset.from_list(found, features) for part, found in parts.items()})


def test_blank_texts_are_left_out_and_class_numbers_beyond_the_names_refused(tmp_path, capsys):
    write(tmp_path, "sst2", "train", [*rows("sst2", 8, 1), {"sentence": " ", "label": 1, "idx": 8}])
    write(tmp_path, "sst2", "validation", rows("sst2", 8, 2))
    assert len(glue_tasks.load("sst2", tmp_path)[0]) == 8
    assert "1 rows with a blank text" in capsys.readouterr().err
    write(tmp_path, "sst2", "train", [{"sentence": "w1", "label": -1, "idx": 0}])
    with pytest.raises(DataError, match=r"sst2, row 1.*0 to 1, found -1"):
        glue_tasks.load("sst2", tmp_path)


def test_scores_are_those_of_the_paper():
    metrics = {
        "validation_accuracy": 0.5,
        "validation_mcc": 0.25,
        "validation_pearson": 0.8,
        "validation_spearman": 0.6,
    }
    found = {name: round(task.score(metrics), 6) for name, task in glue_tasks.TASKS.items()}
    assert found.pop("cola") == 25.0
    assert found.pop("stsb") == 70.0
    assert set(found.values()) == {50.0}


def call(base: Base, data: Path, out: Path, config: Path, *more: str) -> int:
    return glue.main(
        [
            "--table",
            "main",
            "--base",
            str(base.path),
            "--data",
            str(data),
            "--out",
            str(out),
            "--config",
            str(config),
            *more,
        ]
    )


def test_a_table_is_filled_once_and_goes_on_where_it_stopped(base, data, tmp_path, capsys):
    methods = {
        "pafi": {"lr": [0.001, 0.01], "mask": {"density": 0.01, "scope": "blocks"}},
        "hiwi": {"lr": [0.003], "bottleneck": 4},
    }
    config = configure(tmp_path / "c.yaml", ["sst2", "rte", "stsb", "mnli"], methods)
    out = tmp_path / "out"
    assert call(base, data, out, config, "--tasks", "sst2") == 0
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(results) == 3 + 2  # pafi's two rates by the first seed, the better one by the second
    assert {result["stored"] for result in results if result["method"] == "pafi"} == {round(0.01 * base.space.size)}
    assert not any((out / "state").iterdir())
    capsys.readouterr()

    with (out / "results.jsonl").open("a") as file:
        file.write('{"key": "cut sh')  # the machine went down in the middle of a line
    assert call(base, data, out, config, "--methods", "hiwi") == 0
    printed = capsys.readouterr()
    assert "glue-sst2" not in printed.err
    assert all(f"glue-{task}: hiwi" in printed.err for task in ("rte", "stsb", "mnli"))
    assert len((out / "results.jsonl").read_text().splitlines()) == 5 + 1 + 3 * 2
    head, line = (line.split() for line in printed.out.splitlines()[2:])
    assert head == ["method", "stored", "sst2", "rte", "stsb", "mnli", "mean"]
    assert line[0] == "hiwi"
    assert all(-100 <= float(figure) <= 100 for figure in line[2:])

    assert call(base, data, out, config, "--methods", "hiwi", "--json") == 0
    printed = capsys.readouterr()
    assert [result["seed"] for result in json.loads(printed.out)] == [1, 2] * 4
    assert printed.err == ""


def test_the_mask_of_a_method_is_made_as_the_configuration_says(base, tmp_path):
    methods = {"pafi": {}, "random": {"density": 0.02, "seed": 3}, "lift": {"rank": 2}}
    config = configure(tmp_path / "c.yaml", ["sst2"], {name: {"lr": [0.1], "mask": m} for name, m in methods.items()})
    masks = {cell.method: glue._mask(base, cell) for cell in glue_plan.read(config, "main").cells}
    assert masks["pafi"].digest == Mask.build(base).digest
    assert masks["random"].digest == Mask.build(base, 0.02, recipe="random", seed=3).digest
    assert masks["lift"].recipe["rank"] == 2


def test_a_rate_at_which_training_diverges_costs_no_table(base, data, tmp_path, capsys):
    config = configure(tmp_path / "c.yaml", ["sst2"], {"bitfit": {"lr": [1e30, 0.003], "epochs": 2}})
    assert call(base, data, tmp_path / "out", config) == 0
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(result["lr"], result["score"] is None) for result in results] == [
        (1e30, True), (0.003, False), (0.003, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tables": {"other": {}}}, "table 'main'"),
        ({"tables": {"main": {"tasks": ["wnli"], "methods": ["pafi"]}}}, "tasks of a table"),
        ({"tables": {"main": {"tasks": ["sst2"], "methods": ["lora"]}}}, "methods of a table"),
        ({"seeds": []}, "seeds"),
        ({"settings": {"colour": "red"}}, "no setting 'colour'"),
        ({"settings": {"warmup": 3}}, "warmup"),
        ({"methods": {"pafi": {"lr": 0.1}}}, "a list of learning rates"),
        ({"methods": {"pafi": {"lr": ["1e-3"]}}}, "lr"),
        ({"methods": {"pafi": {"lr": [0.1], "mask": 0.5}}}, "mask of pafi"),
        (
            {
                "methods": {"bitfit": {"lr": [0.1], "mask": {"density": 1}}},
                "tables": {"main": {"tasks": ["sst2"], "methods": ["bitfit"]}},
            },
            "mask of bitfit",
        ),
        (
            {
                "methods": {"gradient": {"lr": [0.1]}},
                "tables": {"main": {"tasks": ["sst2"], "methods": ["gradient"]}},
            },
            "needs no texts",
        ),
        ({"tables": None}, "tables"),
        ({"more": 1}, "the keys"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused_before_any_work(tmp_path, change, said):
    config = configure(tmp_path / "c.yaml", ["sst2"], {"pafi": {"lr": [0.01]}}, change)
    with pytest.raises((DataError, UsageError), match=said):
        glue_plan.read(config, "main")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--table", "none"], 2, "expected one of main, small"),
        (["--table", "main", "--tasks", "wnli"], 2, "task 'wnli'"),
        (["--table", "main", "--data", "no/such/folder"], 1, "no folder no/such/folder"),
        (["--table", "main", "--config", "none.yaml"], 1, "cannot read none.yaml"),
    ],
)
def test_refusals_are_one_line(arguments, code, said, capsys):
    assert glue.main(arguments) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_it_says_so_at_once(tmp_path, base, offline):
    """Nobody listens on port 9; or the user says that all is in the cache, and it is empty."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    environment["HF_HUB_OFFLINE"] = "1" if offline else "0"
    done = subprocess.run(
        [sys.executable, str(GLUE / "run.py"), "--table", "small", "--base", str(base.path), "--out", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be had from the Hugging Face hub" in done.stderr
    assert "--data DIR" in done.stderr
    assert done.stderr.count("\n") == 1
