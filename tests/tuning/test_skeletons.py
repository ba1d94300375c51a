"""Task models copied from a skeleton are those that would have been built."""

from __future__ import annotations

import pytest
import torch

from deltahub.backbone import load_backbone
from deltahub.errors import MismatchError
from deltahub.heads import head_names, load_head, task_model
from deltahub.skeletons import Skeletons, skeleton
from tests.conftest import MakeBase
from tests.tuning.test_heads import POOLER

SHAPES = [
    *(
        (architecture, kind, head)
        for architecture in ("bert", "roberta", "gpt2", "llama", "qwen2", "mixtral")
        for kind, head in (
            ("text-classification", "native"),
            ("regression", "linear"),
            ("token-classification", "native"),
        )
        if (architecture, kind) != ("mixtral", "token-classification")
    ),
    ("t5", "text-classification", "native"),
    ("t5", "token-classification", "native"),
    ("vit", "image-classification", "native"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("architecture", "kind", "head"), SHAPES)
def test_a_copy_of_a_skeleton_answers_as_a_task_model_that_was_built(
    base_of: MakeBase, architecture: str, kind: str, head: str, dtype: torch.dtype
) -> None:
    backbone = load_backbone(base_of(architecture, dtype))
    lacking = POOLER if architecture == "bert" else ()
    skeletons = Skeletons(backbone, lacking)
    inputs = {"input_ids": torch.tensor([[5, 6, 1]])}  # T5 wants its last token
    if architecture == "vit":
        inputs = {"pixel_values": torch.ones(1, 3, 16, 16, dtype=dtype)}
    names = [("a", "b", "c"), ("x", "y", "z")] if kind != "regression" else [(), ()]
    copies = []
    for seed, labels in enumerate(names):
        torch.manual_seed(seed)
        built = task_model(backbone, backbone.config, kind, labels, head=head, lacking=lacking).eval()
        how = getattr(built, "pooling", None)
        made = skeletons.task_model(kind, labels, type(built).__name__, how).eval()
        load_head(made, {name: built.state_dict()[name] for name in head_names(built, lacking)}, lacking)
        copies.append((built, made))
    for labels, (built, made) in zip(names, copies, strict=True):
        assert type(made) is type(built)
        assert made.config.to_dict() == built.config.to_dict()
        assert not labels or made.config.id2label == dict(enumerate(labels))
        with torch.inference_mode():
            assert torch.equal(made(**inputs).logits, built(**inputs).logits)
    first, second = (dict(made.named_parameters()) for _, made in copies)
    own = set(head_names(copies[0][1], lacking))
    assert own
    for name in first:
        assert (first[name] is second[name]) == (name not in own), name
        assert first[name].requires_grad
    assert backbone.config.to_dict() == load_backbone(base_of(architecture, dtype)).config.to_dict()


def test_skeletons_are_built_once_for_each_shape(base_of: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltahub import skeletons

    built, build = [], skeletons.skeleton
    monkeypatch.setattr(skeletons, "skeleton", lambda *args, **rest: built.append(args[2:4]) or build(*args, **rest))
    backbone = load_backbone(base_of("bert"))
    made = Skeletons(backbone, ())
    for labels in (("a", "b"), ("c", "d"), ("a", "b", "c"), ("d", "e", "f")):
        assert made.task_model("text-classification", labels).config.label2id == {
            label: number for number, label in enumerate(labels)
        }
    assert built == [("text-classification", ("a", "b")), ("text-classification", ("a", "b", "c"))]
    assert made.task_model("embeddings", ()) is backbone
    for pooling in (7, [], {}, "max"):
        with pytest.raises(MismatchError, match="the pooling: expected one of mean, cls, last"):
            made.task_model("text-classification", ("a", "b"), "LinearHead", pooling)


def test_a_skeleton_takes_no_memory_for_the_head(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    labels = [str(number) for number in range(1000)]
    made = skeleton(
        backbone, backbone.config, "text-classification", labels, None, lacking=(), linear=False, pooling=None
    )
    assert made.classifier.weight.is_meta
    assert made.bert is backbone
