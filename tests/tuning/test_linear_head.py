"""A head of one linear layer on pooled states, on any base."""

from __future__ import annotations

import pytest
import torch

from deltahub.backbone import load_backbone
from deltahub.errors import MismatchError, UsageError
from deltahub.heads import head_names, task_model
from tests.conftest import MakeBase
from tests.tuning.test_heads import POOLER, TEXT


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_a_linear_head_is_one_layer_around_the_shared_submodules(base_of: MakeBase, architecture: str) -> None:
    backbone = load_backbone(base_of(architecture))
    lacking = POOLER if architecture in ("bert", "roberta") else ()
    model = task_model(backbone, backbone.config, "regression", (), head="linear", lacking=lacking)
    assert model.pooling == ("last" if architecture in ("gpt2", "llama") else "mean")
    assert model.config.architectures == ["LinearHead"]
    assert backbone.config.architectures != ["LinearHead"]
    assert head_names(model, lacking) == ["classifier.weight", "classifier.bias"]
    theirs = {id(parameter) for parameter in backbone.parameters()}
    ours = [parameter for name, parameter in model.named_parameters() if name.startswith("backbone.")]
    assert ours
    assert all(id(parameter) in theirs for parameter in ours)
    assert model.eval()(**TEXT).logits.shape == (1, 1)


def test_a_manifest_brings_a_linear_head_back(base_of: MakeBase) -> None:
    backbone = load_backbone(base_of("bert"))
    made = task_model(backbone, backbone.config, "text-classification", ("a", "b"), "LinearHead", pooling="cls")
    assert (type(made).__name__, made.pooling) == ("LinearHead", "cls")
    with pytest.raises(MismatchError, match="the pooling: expected one of mean, cls, last, found 7"):
        task_model(backbone, backbone.config, "text-classification", ("a", "b"), "LinearHead", pooling=7)
    with pytest.raises(MismatchError, match="expected LinearHead, found BertForTokenClassification"):
        task_model(backbone, backbone.config, "token-classification", ("a", "b"), "LinearHead")
    with pytest.raises(UsageError, match="head 'deep': expected one of native, linear, shared"):
        task_model(backbone, backbone.config, "text-classification", ("a", "b"), head="deep")
    seq2seq = load_backbone(base_of("t5"))
    with pytest.raises(MismatchError, match="a linear head on T5Model: expected an encoder or a decoder"):
        task_model(seq2seq, seq2seq.config, "text-classification", ("a", "b"), head="linear")


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("text-classification", torch.tensor([2, 0])),
        ("multi-label-classification", torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ("regression", torch.tensor([0.5, -3.0])),
    ],
)
def test_a_linear_head_has_the_loss_of_transformers_own_classes(
    base_of: MakeBase, kind: str, labels: torch.Tensor
) -> None:
    backbone = load_backbone(base_of("roberta"))
    names = () if kind == "regression" else ("a", "b", "c")
    linear, native = (task_model(backbone, backbone.config, kind, names, head=head) for head in ("linear", "native"))
    native.classifier = torch.nn.Sequential(Mean(), linear.classifier)
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]])}
    ours, theirs = (model.eval()(**inputs, labels=labels) for model in (linear, native))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


class Mean(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.mean(1)
