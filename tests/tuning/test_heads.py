from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError, MismatchError, UsageError
from deltahub.heads import (
    head_names,
    load_head,
    load_tokenizer,
    longest_input,
    share_inner,
    task_model,
)
from deltahub.shared_head import fixed_values
from deltahub.skeletons import KINDS

MakeBase = Callable[..., Base]
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
TEXT = {"input_ids": torch.tensor([[5, 6, 7]])}

GOLDEN = [
    0.874756395816803,
    0.23708635568618774,
    -0.7239720225334167,
    0.7464236617088318,
    -0.21296292543411255,
    -0.3258032202720642,
]
LARGE = "72124ef8e36a4a083179ed9ecdebcd3fe7e0a851a2720676dad5c5e6e50335ee"


def test_the_backbone_is_shared_not_copied(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    first = task_model(backbone, backbone.config, "text-classification", ("a", "b", "c"))
    second = task_model(backbone, backbone.config, "text-classification", ("x", "y"))
    assert first.bert is backbone
    assert second.bert is backbone
    assert (first.config.num_labels, second.config.num_labels) == (3, 2)
    assert first.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert head_names(first) == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("roberta", "text-classification"), ("bert", "token-classification")]
)
def test_a_task_class_without_pooler_shares_the_submodules(base_of: MakeBase, architecture: str, kind: str) -> None:
    backbone = load_backbone(base_of(architecture))
    model = task_model(backbone, backbone.config, kind, ("a", "b"))
    inner = getattr(model, model.base_model_prefix)
    assert inner.encoder is backbone.encoder
    assert inner.embeddings is backbone.embeddings
    assert inner.pooler is None
    assert backbone.pooler is not None
    assert model.eval()(**TEXT).logits.isfinite().all()


def test_what_the_base_lacks_is_the_tasks_own(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    model = task_model(backbone, backbone.config, "text-classification", ("a", "b"), lacking=POOLER)
    assert head_names(model, POOLER) == [f"bert.{name}" for name in POOLER] + ["classifier.weight", "classifier.bias"]
    assert model.bert.pooler is not backbone.pooler
    assert model.bert.encoder is backbone.encoder
    head = {name: torch.randn_like(model.state_dict()[name]) for name in head_names(model, POOLER)}
    before = backbone.pooler.dense.weight.clone()
    load_head(model, head, POOLER)
    assert torch.equal(backbone.pooler.dense.weight, before)
    assert torch.equal(model.bert.pooler.dense.weight, head["bert.pooler.dense.weight"])


def test_a_head_has_the_dtype_of_its_backbone_and_its_first_values_come_from_the_seed(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert", torch.bfloat16))

    def weight() -> torch.Tensor:
        torch.manual_seed(3)
        return task_model(backbone, backbone.config, "text-classification", ("a", "b")).classifier.weight

    assert weight().dtype == torch.bfloat16
    assert torch.equal(weight(), weight())
    assert 0.005 < weight().float().std() < 0.05  # initializer_range is 0.02


def test_inner_layers_are_the_same_whatever_the_seed(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("roberta"))

    def shared(seed: int, labels: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        names = [f"class {number}" for number in range(labels)]
        return task_model(backbone, backbone.config, "text-classification", names, head="shared", lacking=POOLER)

    first, second = shared(0, 2), shared(1, 5)
    frozen = share_inner(first, POOLER)
    assert frozen == ("classifier.dense.weight", "classifier.dense.bias")
    for name in frozen:
        assert torch.equal(first.get_parameter(name), second.get_parameter(name)), name
    assert not first.classifier.dense.bias.any()
    assert first.classifier.dense.weight.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert not torch.equal(first.classifier.out_proj.weight, shared(1, 2).classifier.out_proj.weight)


def test_a_pooler_that_the_base_lacks_is_an_inner_layer(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    model = task_model(backbone, backbone.config, "regression", (), lacking=POOLER)
    assert share_inner(model, POOLER) == tuple(f"bert.{name}" for name in POOLER)
    assert not torch.equal(model.bert.pooler.dense.weight, backbone.pooler.dense.weight)
    assert share_inner(task_model(backbone, backbone.config, "regression", ())) == ()
    assert share_inner(task_model(backbone, backbone.config, "token-classification", ("a", "b"))) == ()


def test_inner_layers_never_change() -> None:
    values = fixed_values("classifier.dense.weight", (2, 3))
    assert values.flatten().tolist() == GOLDEN
    large = fixed_values("classifier.dense.weight", (256, 192))
    assert hashlib.sha256(large.numpy().tobytes()).hexdigest() == LARGE
    assert large.abs().max() <= (3 / 192) ** 0.5
    assert fixed_values("norm.weight", (4,)).tolist() == [1.0] * 4


def test_images_have_a_head_too(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("vit"))
    model = task_model(backbone, backbone.config, "image-classification", ("cat", "dog"))
    assert model.vit.layers is backbone.layers if hasattr(backbone, "layers") else model.vit.encoder is backbone.encoder
    assert model.eval()(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)


def test_embeddings_need_no_model_of_their_own(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    assert task_model(backbone, backbone.config, "embeddings", ()) is backbone
    assert head_names(backbone) == []


def test_kinds_and_architectures_that_do_not_fit_are_refused(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    with pytest.raises(UsageError, match=f"'text-generation' has no task model: expected one of {KINDS[0]}"):
        task_model(backbone, backbone.config, "text-generation", ())
    with pytest.raises(MismatchError, match="BertModel has no model for image-classification"):
        task_model(backbone, backbone.config, "image-classification", ("a", "b"))
    with pytest.raises(MismatchError, match="expected RobertaForSequenceClassification, found BertForSequence"):
        task_model(backbone, backbone.config, "text-classification", ("a",), "RobertaForSequenceClassification")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.pop("classifier.bias"), "lacks classifier.bias"),
        (lambda head: head.update(other=torch.zeros(1)), "has no place for other"),
        (lambda head: head.update({"classifier.bias": torch.zeros(5)}), r"expected \(2,\), found \(5,\)"),
    ],
)
def test_a_head_is_loaded_whole_or_not_at_all(base_of: MakeBase, change: Callable[..., object], message: str) -> None:
    backbone = load_backbone(base_of("bert"))
    model = task_model(backbone, backbone.config, "text-classification", ("a", "b"))
    before = model.classifier.weight.clone()
    head = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}
    change(head)
    with pytest.raises(MismatchError, match=message):
        load_head(model, head)
    assert torch.equal(model.classifier.weight, before)


def test_the_tokenizer_comes_from_the_base(text_base: Base, base_of: MakeBase) -> None:
    tokenizer = load_tokenizer(text_base)
    assert tokenizer("w0 w1")["input_ids"] == [1, 4, 5, 2]
    assert longest_input(tokenizer, load_backbone(text_base).config) == 32
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(base_of("bert"))


def spoilt(base: Base, folder: Path, file: str, content: str) -> Base:
    shutil.copytree(base.path, folder)
    (folder / file).write_text(content)
    return Base.open(folder, cache=folder / "cache")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -1),
        ("hidden_size", "x"),
        ("hidden_size", 64),
        ("num_attention_heads", 0),
        ("num_attention_heads", -1),
        ("vocab_size", 7),
        ("model_type", []),
        ("pad_token_id", 10**6),
        ("id2label", "x"),
        ("dtype", "float99"),
    ],
)
def test_an_odd_config_is_refused_in_one_line(text_base: Base, tmp_path: Path, name: str, value: object) -> None:
    base = spoilt(text_base, tmp_path / "odd", "config.json", json.dumps(text_base.config | {name: value}))
    with pytest.raises(CheckpointError, match=r"^[^\n]*(cannot load odd|config\.json)[^\n]*\Z"):
        load_backbone(base)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *((file, content) for file in ("tokenizer.json", "tokenizer_config.json") for content in ("[]", "null", '"x"')),
        ("config.json", '{"model_type": "bert", "id2label": "x"}'),
    ],
)
def test_odd_tokenizer_files_are_refused_in_one_line(text_base: Base, tmp_path: Path, file: str, content: str) -> None:
    with pytest.raises(CheckpointError, match=r"^the tokenizer of odd cannot be loaded \([^\n]*\Z"):
        load_tokenizer(spoilt(text_base, tmp_path / "odd", file, content))
