"""The command line as a user meets it: (arguments, output, error, exit code)."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deltahub.backbone import quiet
from deltahub.cli import main, parser
from deltahub.delta import Delta
from deltahub.mask import Mask
from tests.deltas import random_delta
from tests.models import bits, load_classifier, same_bits
from tests.test_convert import finetune


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / ".cache"))
    monkeypatch.delenv("DELTAHUB_HUB", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capsys.readouterr())

    return call


def good(result) -> str:
    code, out, err = result
    assert code == 0, err
    return out


def test_every_command_and_option_has_a_help_text():
    def walk(level: argparse.ArgumentParser, path: str) -> None:
        for action in level._actions:
            if isinstance(action, argparse._SubParsersAction):
                summaries = {choice.dest: choice.help for choice in action._choices_actions}
                for name, inner in action.choices.items():
                    assert summaries[name], f"{path} {name}"
                    assert inner.description, f"{path} {name}"
                    walk(inner, f"{path} {name}")
            else:
                assert action.help, f"{path} {action.dest}"

    walk(parser(), "deltahub")


def test_readme_documents_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert [name for name in commands if f"deltahub {name}" not in readme] == []


def test_from_a_checkpoint_to_the_hub_and_back(run, base_of, folder_of):
    """mask build, extract, push, list, versions, tag, pull, inspect, materialize: the tasks of one afternoon."""
    base = folder_of("bert")
    digest = good(run("mask", "build", base, "--density", "0.02", "-o", "m.mask")).strip()
    assert Mask.load("m.mask").digest == digest
    model = finetune(base_of("bert"), base, Mask.load("m.mask"))
    model.save_pretrained("finetuned")
    out = good(run("extract", base, "finetuned", "--task", "sst2", "--mask", "m.mask", "-o", "sst2.delta"))
    assert out.strip() == Delta.load("sst2.delta").digest
    assert good(run("push", "sst2.delta", "--tag", "prod")).startswith("sst2@1 ")
    assert good(run("push", "sst2.delta")).startswith("sst2@1 ")
    assert good(run("push", "sst2.delta", "--values", "int8", "--head", "bf16")).startswith("sst2@2 ")
    assert re.search(r"sst2 +@2 +2 +prod", good(run("list")))
    assert [row["version"] for row in json.loads(good(run("versions", "sst2", "--json")))] == ["sst2@1", "sst2@2"]
    good(run("tag", "sst2@2", "small"))
    assert good(run("pull", "sst2:prod", "-o", "back.delta")).strip() == "back.delta"
    assert Path("back.delta").read_bytes() == Path("sst2.delta").read_bytes()
    code, _, err = run("inspect", "sst2:small")
    assert code == 0
    assert "lossy: int8 in groups of 256; values moved" in err
    assert "lossy: bf16; head moved" in err
    assert json.loads(good(run("inspect", "back.delta", "--json")))["manifest"]["task"] == "sst2"
    good(run("materialize", "sst2:prod", base, "-o", "full"))
    with quiet():
        again = type(model).from_pretrained("full")
    assert same_bits(bits(again), bits(model))
    assert "0 problems" not in good(run("verify"))
    good(run("tag", "sst2", "small", "--delete"))
    code, _, err = run("remove", "sst2@2")
    assert code == 0
    assert len(json.loads(good(run("gc", "--grace", "0", "--json")))["deleted"]) > 0
    assert good(run("verify")) == ""
    report = json.loads(good(run("report", "--base", base, "--json", "--html", "r.html")))
    assert [task["version"] for task in report["tasks"]] == ["sst2@1"]
    assert "<td>sst2@1" in Path("r.html").read_text()
    assert "full checkpoint each" in good(run("report"))


def test_diff_merge_and_mask_show(run, base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    for seed, name in enumerate("ab"):
        random_delta(base, mask, seed, task=name).save(f"{name}.delta")
    found = json.loads(good(run("diff", "a.delta", "b.delta", "--base", folder_of("bert"), "--json")))
    assert found["values"] == mask.k
    assert "encoder.layer" in good(run("diff", "a.delta", "b.delta", "--base", folder_of("bert")))
    good(run("merge", "a.delta", "b.delta", "--weights", "0.25", "0.75", "-o", "c.delta"))
    assert Delta.load("c.delta").task == "a-b"
    mask.save("m.mask")
    shown = json.loads(good(run("mask", "show", "m.mask", folder_of("bert"), "--json")))
    assert sum(group["masked"] for group in shown["groups"]) == mask.k
    assert "encoder.layer.*" in good(run("mask", "show", "m.mask", folder_of("bert")))


def test_a_mask_from_indices_travels_with_the_hub(run, base_of, folder_of):
    base = base_of("bert")
    np.save("chosen.npy", np.arange(5, 900, 3))
    good(run("mask", "build", folder_of("bert"), "--recipe", "file", "--indices", "chosen.npy", "-o", "m.mask"))
    random_delta(base, Mask.load("m.mask")).save("t.delta")
    code, _, err = run("push", "t.delta")
    assert code == 1
    assert "--mask" in err or "mask=" in err
    good(run("push", "t.delta", "--mask", "m.mask"))
    assert good(run("push", "t.delta")).startswith("sst2@1")
    good(run("materialize", "sst2", folder_of("bert"), "-o", "full"))
    code, _, err = run("materialize", "t.delta", folder_of("bert"), "-o", "other", "--hub", "nowhere")
    assert code == 1
    assert "cannot be rebuilt" in err


REFUSED = [
    (["list"], 1, "no hub"),
    (["pull", "sst2"], 1, "no hub"),
    (["pull", "../x"], 2, "task name"),
    (["push", "nothing.delta"], 1, "nothing.delta"),
    (["push", "garbage.delta"], 1, "not a safetensors file"),
    (["inspect", "garbage.delta"], 1, "not a safetensors file"),
    (["extract", "{base}", "nowhere/x/y", "--task", "t", "-o", "t.delta"], 1, "no checkpoint at"),
    (["extract", "{base}", "{base}", "--task", "A B", "-o", "t.delta"], 1, "task"),
    (["mask", "build", "{base}", "--density", "7", "-o", "m"], 2, "density"),
    (["mask", "build", "{base}", "--density", "x", "-o", "m"], 2, "invalid float"),
    (["mask", "build", "{base}", "--recipe", "file", "-o", "m"], 2, "--indices"),
    (["mask", "build", "{base}", "-o", "no/such/folder/m"], 2, "no folder no/such/folder"),
    (["mask", "build", "{base}", "-o", "garbage.delta"], 2, "--force"),
    (["mask", "show", "garbage.delta", "{base}"], 1, "not a safetensors file"),
    (["materialize", "good.delta", "{other}", "-o", "out"], 1, "made on another base"),
    (["materialize", "good.delta", "{base}", "-o", "."], 2, "not empty"),
    (["diff", "good.delta", "good.delta", "--base", "{other}"], 1, "made on another base"),
    (["merge", "good.delta", "--weights", "1", "2", "-o", "x"], 2, "weights"),
    (["list", "--hub", "frob://x"], 2, "frob"),
    (["frobnicate"], 2, "invalid choice"),
    ([], 2, "required"),
    (["train", "{base}", "--data", "nothing.jsonl", "-o", "x.delta"], 1, "nothing.jsonl"),
    (["train", "{base}", "--data", "garbage.delta", "-o", "x.delta"], 1, "garbage.delta"),
    (["predict", "good.delta", "text", "--base", "{base}"], 1, ""),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), REFUSED, ids=lambda part: " ".join(part) if isinstance(part, list) else ""
)
def test_refusals_are_one_clear_line(run, base_of, folder_of, arguments, code, said):
    Path("garbage.delta").write_bytes(b"not a delta at all")
    random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02), classes=2).save("good.delta")
    names = {"{base}": str(folder_of("bert")), "{other}": str(folder_of("roberta"))}
    found, out, err = run(*[names.get(argument, argument) for argument in arguments])
    assert found == code, err
    assert said in err
    assert out == ""
    assert "Traceback" not in err
    if err.startswith("deltahub: "):
        assert err.count("\n") == 1


def test_ctrl_c_and_a_closed_pipe_end_quietly(run, monkeypatch):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("deltahub.cli.hubs._list", interrupted)
    assert run("list") == (130, "", "deltahub: interrupted; nothing was half-written\n")


def test_the_hub_comes_from_the_environment(run, base_of, monkeypatch, tmp_path):
    random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02)).save("t.delta")
    monkeypatch.setenv("DELTAHUB_HUB", f"file://{tmp_path}/elsewhere")
    good(run("push", "t.delta"))
    assert (tmp_path / "elsewhere" / "hub.json").exists()


def test_a_lossy_extract_says_what_was_lost(run, base_of, folder_of):
    model = load_classifier(folder_of("bert"))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight += 0.1
    model.save_pretrained("finetuned")
    arguments = ["extract", folder_of("bert"), "finetuned", "--task", "t", "-o", "t.delta"]
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert "--lossy" in err
    assert not Path("t.delta").exists()
    code, _, err = run(*arguments, "--lossy")
    assert code == 0
    assert re.search(r"lost 9\d\.\d\d% of the change", err)


def test_texts_may_follow_options(run):
    from deltahub.cli import _parse

    assert _parse(["predict", "sst2", "--base", "b", "one", "two"]).texts == ["one", "two"]
    code, _, err = run("predict", "sst2", "--base", "b", "one", "--colour", "red")
    assert code == 2
    assert "usage: deltahub predict" in err


def test_output_names_are_checked_before_any_work(run, base_of):
    for name in "ab":
        random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02), task=name).save(f"{name}.delta")
    before = Path("a.delta").read_bytes()
    assert run("merge", "a.delta", "b.delta", "-o", "a.delta")[0] == 2
    assert Path("a.delta").read_bytes() == before
    assert run("merge", "a.delta", "b.delta", "-o", "/dev/null", "--force")[0] == 2
    assert Path("/dev/null").is_char_device()
    good(run("merge", "a.delta", "b.delta", "-o", "a.delta", "--force"))


def test_names_in_files_cannot_steer_the_terminal(run, base_of):
    delta = random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02))
    delta.with_manifest(licence="\x1b[2J\x07MIT").save("esc.delta")
    code, out, err = run("inspect", "esc.delta")
    assert code == 0
    assert "\x1b" not in out + err
    assert "\\x1b[2J\\x07MIT" in out


def test_a_training_is_not_lost_when_its_place_is(base_of, tmp_path, monkeypatch, capsys):
    from deltahub.cli.training import _save

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    delta = random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02))
    path = _save(delta, tmp_path / "gone" / "x.delta")
    assert Delta.load(path).digest == delta.digest
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_matter(tmp_path, streams):
    command = f"{sys.executable} -m deltahub.cli verify --hub {tmp_path / 'hub'} {streams}"
    from deltahub.hub import Hub

    Hub.open(tmp_path / "hub")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_text_that_is_no_utf8_is_refused(run, base_of, folder_of, monkeypatch):
    random_delta(base_of("bert"), Mask.build(base_of("bert"), 0.02), classes=2).save("good.delta")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n")))
    code, out, err = run("predict", "good.delta", "--base", folder_of("bert"))
    assert (code, out) == (2, "")
    assert "not UTF-8" in err
