"""Every architecture gives right answers when its tasks are mixed, or refuses them when they are admitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GemmaConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
    XLNetConfig,
)

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests import models as known
from tests.mixing.test_mixer import KINDS, check, merged, numbers, rows_of, with_tensors
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40,
}  # fmt: skip
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MORE: dict[str, PreTrainedConfig] = {
    "albert": AlbertConfig(**_SIZES, embedding_size=16),
    "bart": BartConfig(
        vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40,
        decoder_start_token_id=2, **_MARKS,
    ),
    "deberta": DebertaV2Config(
        **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm"
    ),
    "distilbert": DistilBertConfig(
        vocab_size=96, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40
    ),
    "electra": ElectraConfig(**_SIZES, embedding_size=16),
    "gemma": GemmaConfig(**_SIZES, num_key_value_heads=2, head_dim=16),
    "modernbert": ModernBertConfig(**_SIZES, **_MARKS, cls_token_id=1, sep_token_id=2),
    "mpnet": MPNetConfig(**_SIZES),
    "opt": OPTConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        max_position_embeddings=40, word_embed_proj_dim=32, **_MARKS,
    ),
    "qwen3": Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16),
    "xlnet": XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=2, d_inner=64),
}  # fmt: skip
MIXED = [
    "albert", "bert", "distilbert", "electra", "gemma", "llama", "modernbert", "mpnet", "qwen2", "qwen3", "roberta",
]  # fmt: skip
REFUSED = {
    "deberta": "pos_key_proj", "gpt2": "c_attn", "mixtral": "experts", "opt": "fc1", "t5": "not run on tokens alone",
    "xlnet": "rel_attn|ff",
}  # fmt: skip
"""Whose blocks rows cannot differ in, and what the refusal names."""
NORMS = {
    "albert": "encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm",
    "bert": "encoder.layer.1.attention.output.LayerNorm", "distilbert": "transformer.layer.0.sa_layer_norm",
    "electra": "embeddings.LayerNorm", "gemma": "layers.0.input_layernorm", "llama": "norm",
    "modernbert": "layers.1.attn_norm", "mpnet": "encoder.layer.0.output.LayerNorm",
    "qwen2": "layers.1.post_attention_layernorm", "qwen3": "layers.0.self_attn.q_norm",
    "roberta": "encoder.layer.0.output.LayerNorm",
}  # fmt: skip
ELSEWHERE = {"mpnet": ["*relative_attention_bias*"], "gemma": ["embed_tokens.*"]}
"""In which the rows of an architecture that can be mixed cannot differ."""
Bases = Callable[[str], Base]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    made: dict[str, Base] = {}

    def base_of(architecture: str) -> Base:
        if architecture not in made:
            made[architecture] = write_text_base(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    with pytest.MonkeyPatch.context() as patch:
        for name, config in _MORE.items():
            patch.setitem(known.CONFIGS, name, config)
        yield base_of


def mixer_of(
    base: Base, mask: Mask | None, side: str = "right"
) -> tuple[Resident, Mixer, Callable[[Delta], TaskModel]]:
    resident, tokenizer = Resident(load_backbone(base), base, mask), load_tokenizer(base)
    tokenizer.padding_side = side
    return resident, Mixer(resident, tokenizer), lambda delta: TaskModel(resident, tokenizer, delta)


@pytest.mark.parametrize("scope", ["blocks", "all", "matrices"])
@pytest.mark.parametrize("architecture", MIXED)
def test_all_kinds_and_heads_are_answered_as_by_swaps(bases: Bases, architecture: str, scope: str) -> None:
    """With changed norms and low-rank factors among them, which win over masked values."""
    base = bases(architecture)
    mask = Mask.build(base, density=0.3, scope=scope, exclude=ELSEWHERE.get(architecture, ()))
    resident, mixer, model = mixer_of(base, mask)
    deltas = [random_task(base, mask, kind, task=kind, seed=at) for at, kind in enumerate(KINDS)]
    for at, pooling in enumerate(("mean", "cls", "last")):
        deltas.append(random_task(base, mask, KINDS[at], task=pooling, seed=9 + at, head="linear", pooling=pooling))
    norm = f"{NORMS[architecture]}.weight"
    weight = next(site.name for site in mixer.sites.matrices)
    plain = random_task(base, None, "embeddings", task="plain")
    deltas += [with_tensors(base, deltas[at], at, norm) for at in (0, 4)]
    deltas += [with_tensors(base, delta, 3, weight, group="adapter") for delta in (deltas[1], deltas[8])]
    deltas += [plain, with_tensors(base, plain, 8, norm), with_tensors(base, plain, 9, weight, group="adapter")]
    check(resident, mixer, rows_of(mixer, [model(delta) for delta in deltas]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_decoders_take_padding_on_both_sides(bases: Bases, architecture: str, side: str) -> None:
    """With a mask that touches the weights of norms."""
    base = bases(architecture)
    mask = Mask.build(base, density=0.1, recipe="random")
    assert any("norm" in tensor.name for tensor, _ in base.space.split(mask.indices))
    resident, mixer, model = mixer_of(base, mask, side)
    tasks = [model(random_task(base, mask, kind, task=kind, seed=at)) for at, kind in enumerate(KINDS)]
    check(resident, mixer, rows_of(mixer, tasks))


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_mixed_is_refused_at_once(bases: Bases, architecture: str) -> None:
    """Fused or stacked layers, layers that are given tokens of all rows or of none, and more inputs than tokens."""
    base = bases(architecture)
    mask = Mask.build(base, density=0.3)
    _, mixer, model = mixer_of(base, mask)
    task = model(random_task(base, mask, "text-classification"))
    with pytest.raises(MismatchError, match=rf"(?s)({REFUSED[architecture]}).*swapped in"):
        mixer.admit(task)


@pytest.mark.parametrize("kind", ["text-classification", "embeddings"])
def test_encoder_and_decoder_can_be_mixed(bases: Bases, kind: str) -> None:
    base = bases("bart")
    mask = Mask.build(base, density=0.3)
    resident, mixer, model = mixer_of(base, mask)
    check(
        resident, mixer, rows_of(mixer, [model(random_task(base, mask, kind, task=f"t{n}", seed=n)) for n in range(3)])
    )


@pytest.mark.parametrize("architecture", ["deberta", "gpt2", "opt", "mixtral"])
def test_norms_that_are_given_rows_differ_where_matrices_cannot(bases: Bases, architecture: str) -> None:
    """The last norm of each, which sees all tokens."""
    base = bases(architecture)
    name = {
        "deberta": "encoder.layer.1.output.LayerNorm.weight", "gpt2": "ln_f.weight",
        "opt": "decoder.final_layer_norm.weight", "mixtral": "norm.weight",
    }[architecture]  # fmt: skip
    resident, mixer, model = mixer_of(base, None)
    plain = random_task(base, None, "text-classification")
    check(resident, mixer, rows_of(mixer, [model(with_tensors(base, plain, seed, name)) for seed in range(3)]))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("xlnet", "layer.0.ff.layer_1.bias"),
        ("deberta", "encoder.LayerNorm.weight"),
        ("opt", "decoder.layers.0.fc1.bias"),
    ],
)
def test_as_many_rows_as_tokens_deceive_nobody(bases: Bases, architecture: str, name: str) -> None:
    """The first dimension of what these layers see is not the rows, whatever its size."""
    base = bases(architecture)
    _, mixer, model = mixer_of(base, None)
    task = with_tensors(base, random_task(base, None, "text-classification"), 1, name)
    with pytest.raises(MismatchError, match=f"changes {name}"):
        mixer.admit(model(task))


@pytest.mark.parametrize("kind", ["text-classification", "embeddings"])
def test_a_backbone_that_gives_more_than_rows_is_refused(bases: Bases, kind: str) -> None:
    """XLNet's memories are (tokens, rows, width)."""
    base = bases("xlnet")
    _, mixer, model = mixer_of(base, None)
    with pytest.raises(MismatchError, match=r"XLNetModel in a mixed pass.*swapped in"):
        mixer.admit(model(random_task(base, None, kind)))


def test_tables_of_relative_positions_are_no_tables_of_words(bases: Bases) -> None:
    """They are asked for (tokens, tokens): five rows of five tokens once got each other's positions."""
    base = bases("mpnet")
    mask = Mask.build(base, density=0.3, scope="all")
    _, mixer, model = mixer_of(base, mask)
    with pytest.raises(MismatchError, match="relative_attention_bias"):
        mixer.admit(model(random_task(base, mask, "embeddings")))


def test_a_base_in_half_precision_is_mixed_by_torch(tmp_path: Path) -> None:
    base = write_text_base(tmp_path, dtype=torch.bfloat16)
    mask = Mask.build(base, density=0.1)
    resident, mixer, model = mixer_of(base, mask)
    assert mixer.products.name == "torch"
    tasks = [model(random_task(base, mask, "embeddings", task=f"t{seed}", seed=seed)) for seed in range(3)]
    rows = rows_of(mixer, tasks)
    for (task, encoded), mixed in zip(rows, mixer.run(rows), strict=True):
        alone = merged(resident, task.model, encoded)
        torch.testing.assert_close(numbers(mixed.answer), alone, rtol=0, atol=0.05)
        others = [merged(resident, other, encoded) for other in tasks if other is not task.model]
        assert min(float((one - alone).abs().max()) for one in others) > 0.1, "the tasks do not differ"
