from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import deltahub as dh
from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError
from tests.tuning.conftest import write_text_base

MODULES = ["Transformer", "Pooling", "Normalize"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("plain"))


def described(plain: Base, folder: Path, modules: object, pooling: object, **sentences: object) -> Base:
    """``plain`` with the files that sentence-transformers writes."""
    shutil.copytree(plain.path, folder)
    if isinstance(modules, list) and all(isinstance(kind, str) for kind in modules):
        paths = ["", "1_Pooling", "2_Normalize", "3_More"]
        kinds = zip(modules, paths, strict=False)
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentences))
    return Base.open(folder, cache=folder / "cache")


def test_a_base_without_description_is_pooled_as_usual(plain: Base, tmp_path: Path) -> None:
    task = dh.base_task(plain)
    assert (task.task, task.manifest.kind, task.manifest.mask) == (plain.id, "embeddings", None)
    assert task.manifest.inputs == {"pooling": "mean", "normalize": True}
    assert not task.tensors
    assert dh.base_task(plain).digest == task.digest
    decoder = write_text_base(tmp_path, "gpt2")
    assert dh.base_task(decoder).manifest.inputs["pooling"] == "last"


@pytest.mark.parametrize(
    ("modules", "pooling", "sentences", "inputs"),
    [
        (MODULES, {"pooling_mode_cls_token": True}, {}, {"pooling": "cls", "normalize": True}),
        (MODULES[:2], {"pooling_mode_mean_tokens": True}, {}, {"pooling": "mean", "normalize": False}),
        (MODULES[:2], {"pooling_mode_lasttoken": True}, {}, {"pooling": "last", "normalize": False}),
        (MODULES, {"pooling_mode": "cls"}, {}, {"pooling": "cls", "normalize": True}),
        (MODULES, {"pooling_mode": ["lasttoken"]}, {}, {"pooling": "last", "normalize": True}),
        (MODULES, {}, {"max_seq_length": 20}, {"pooling": "mean", "normalize": True, "max_length": 20}),
        (MODULES, {}, {"max_seq_length": 512}, {"pooling": "mean", "normalize": True}),
        (MODULES, {}, {"max_seq_length": None, "do_lower_case": False}, {"pooling": "mean", "normalize": True}),
    ],
)
def test_a_base_is_pooled_as_its_files_say(
    plain: Base, tmp_path: Path, modules: list[str], pooling: object, sentences: dict[str, object], inputs: object
) -> None:
    base = described(plain, tmp_path / "described", modules, pooling, **sentences)
    assert dh.base_task(base).manifest.inputs == inputs


@pytest.mark.parametrize(
    ("modules", "pooling", "sentences"),
    [
        ([*MODULES[:2], "Dense"], {}, {}),
        (["WordEmbeddings", "Pooling"], {}, {}),
        (["Transformer"], {}, {}),
        ([], {}, {}),
        ({"type": "Transformer"}, {}, {}),
        (["Transformer", 3], {}, {}),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../1_Pooling"}], {}, {}),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "/etc"}], {}, {}),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "gone"}], {}, {}),
        ([{"type": "x.Transformer", "path": "0_T"}, {"type": "x.Pooling", "path": "1_Pooling"}], {}, {}),
        (MODULES, [], {}),
        (MODULES, {"pooling_mode_max_tokens": True}, {}),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, {}),
        (MODULES, {"pooling_mode": {"a": 1}}, {}),
        (MODULES, {}, {"max_seq_length": 2}),
        (MODULES, {}, {"max_seq_length": "many"}),
        (MODULES, {}, {"max_seq_length": True}),
    ],
)
def test_what_cannot_be_done_here_is_refused_in_one_line(
    plain: Base, tmp_path: Path, modules: object, pooling: object, sentences: dict[str, object]
) -> None:
    base = described(plain, tmp_path / "described", modules, pooling, **sentences)
    with pytest.raises(CheckpointError, match=r"^[^\n]*modules\.json[^\n]*\Z"):
        dh.base_task(base)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b" " * (1 << 21)])
def test_damaged_files_are_refused_in_one_line(plain: Base, tmp_path: Path, content: bytes) -> None:
    base = described(plain, tmp_path / "described", MODULES, {})
    for file in ("1_Pooling/config.json", "modules.json"):
        (base.path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"^[^\n]*fetch the checkpoint again[^\n]*\Z"):
            dh.base_task(base)


def test_lower_case_is_refused_where_the_tokenizer_knows_case(plain: Base, tmp_path: Path) -> None:
    base = described(plain, tmp_path / "described", MODULES, {}, do_lower_case=True)
    assert dh.base_task(base).manifest.inputs["pooling"] == "mean"  # no letter is known to this tokenizer
    file = base.path / "tokenizer.json"
    file.write_text(file.read_text().replace('"w39"', '"A"'))
    with pytest.raises(CheckpointError, match="a tokenizer that ignores case"):
        dh.base_task(base)


def test_the_real_base_embeds_as_it_was_published(real_base: Base) -> None:
    """Mean of the token states, length one, 256 tokens: by hand, with transformers alone."""
    task = dh.base_task(real_base)
    assert task.manifest.inputs == {"pooling": "mean", "normalize": True, "max_length": 256}
    resident = dh.Resident.load(real_base, None)
    model = dh.TaskModel(resident, dh.load_tokenizer(real_base), task)
    texts = ["A cat sleeps.", "The market fell sharply. " * 100]
    resident.swap(model.prepared)
    tokenizer = AutoTokenizer.from_pretrained(real_base.path)
    plain = AutoModel.from_pretrained(real_base.path)
    for text, answer in zip(texts, model.run(model.prepare(texts)), strict=True):
        with torch.inference_mode():
            states = plain(**tokenizer([text], truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
        mean = states[0].mean(0)
        np.testing.assert_allclose(answer.vector, (mean / mean.norm()).numpy(), atol=1e-5)
