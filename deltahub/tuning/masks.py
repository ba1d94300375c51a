"""Masks made once, from gradients on any text or from low-rank parts, for all tasks; no recipe rebuilds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deltahub import digest
from deltahub.backbone import device_named, load_backbone, quiet
from deltahub.binding import Placement, bind
from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError, DataError, UsageError
from deltahub.heads import load_tokenizer, longest_input, shortest_input
from deltahub.manifest import Plain
from deltahub.mask import Mask, budget
from deltahub.pooling import pool
from deltahub.selection import Pool
from deltahub.space import Positions, SpaceTensor

Progress = Callable[[int, int], None]


def gradient_mask(
    base: Base,
    texts: Sequence[str],
    density: float = 0.005,
    scope: str = "blocks",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    batch_size: int = 8,
    max_length: int = 128,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Mask:
    """The k = round(density x N) parameters that the base's representation of ``texts`` depends on most.

    A text's representation h is the mean of the last hidden states of its tokens. A parameter w scores the sum over
    batches of (d sum_i v_i . h_i / dw)^2, every v_i a vector of random signs of its own. As these are independent, the
    expectation is sum_i |d h_i / dw|^2: the diagonal of the Gauss-Newton matrix of the representation under squared
    error (Martens, JMLR 2020, section 8), estimated as Bekas, Kokiopoulou and Saad (2007) do it, one backward pass a
    batch. It is the mask of FISH (Sung, Nair and Raffel, NeurIPS 2021) without labels or a task, so that one serves
    all tasks. The order is by (score, descending; position). Dropout is off, the arithmetic fp32; the same machine
    and number of threads give the same mask.

    Memory: the model in fp32, a score for each parameter in scope, and the gradients of one tensor at a time.

    Args:
        texts: any unlabelled texts, none of them blank; some hundreds will do.
        density, scope, include, exclude: as in `Mask.build`. Tensors that the bare model does not have are left out,
            those that the representation does not depend on score 0.
        batch_size: texts per pass.
        max_length: tokens per text, longer ones are cut.
        seed: of the random signs, 0 to 2^63 - 1.
        device: torch device such as ``cuda``.
        progress: gets texts done and texts in all.

    Raises:
        UsageError: a density, scope, batch size, length, seed or device that cannot be had.
        DataError: no texts, or one that is blank or no valid Unicode.
        CheckpointError: no usable model or tokenizer, or a gradient that is not finite.
    """
    tensors = base.space.scope(scope, include, exclude)
    budget(density, base, tensors)  # refused before anything is loaded
    _check_texts(texts)
    for name, value, least, most in (("batch_size", batch_size, 1, 1 << 31), ("seed", seed, 0, (1 << 63) - 1)):
        if not least <= value <= most:
            raise UsageError(name, expected=f"{least} to {most}", got=value)
    ref, tokenizer = base.ref, load_tokenizer(base)
    model = load_backbone(base).float().to(device_named(device))
    shortest, longest = shortest_input(tokenizer), longest_input(tokenizer, model.config)
    if max_length < shortest:
        raise UsageError("max_length", expected=f"{shortest} or more", got=max_length)
    wanted = {tensor.name for tensor in tensors}
    placements = [place for place in bind(model, base).placements if not wanted.isdisjoint(place.sources)]
    held = {source for place in placements for source in place.sources}
    k = budget(density, base, [tensor for tensor in tensors if tensor.name in held])
    encode = partial(tokenizer, truncation=True, max_length=min(max_length, longest), padding=True, return_tensors="pt")
    with _squares(model, placements) as scores:
        _project(model, encode, texts, batch_size, seed, progress)
    best = Pool(k, _WORST)
    for place, score in zip(placements, scores, strict=True):
        if not bool(torch.isfinite(score).all()):
            raise CheckpointError(
                f"the gradient of {place.name} of {base.id} is not finite", hint="the base overflows on these texts"
            )
        for source in wanted.intersection(place.sources):
            _offer(best, *_of_source(place, score, base.space.by_name[source]))
    indices = best.smallest()
    assert indices is not None  # budget has seen that the scope holds k
    base.check_unchanged()
    recipe: dict[str, Plain] = {
        "name": "gradient", "density": density, "scope": scope, "include": list(include), "exclude": list(exclude),
        "texts": len(texts), "data": digest.of_bytes(json.dumps(list(texts)).encode()),
        "batch_size": batch_size, "max_length": max_length, "seed": seed,
    }  # fmt: skip
    return Mask(ref, base.space.size, recipe, indices)


def lift_mask(
    base: Base,
    density: float = 0.005,
    scope: str = "matrices",
    *,
    rank: int = 64,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Mask:
    """The entries of largest magnitude in the best rank-``rank`` approximation of each matrix, needing no data.

    After LIFT (Liu et al., "LIFT the Veil for the Truth", ICML 2025), which selects again every some hundred steps of
    a training; here it is done once, on the base, since all tasks share the mask. k = round(density x N); each
    two-dimensional tensor of the scope gets a share in proportion to its size, the largest remainders rounded up.
    The order within one is by (magnitude, descending; position), from a full SVD in fp32.

    Args:
        density, scope, include, exclude: as in `Mask.build`; tensors of other than two dimensions get nothing.
        rank: singular values that are kept; a matrix with no more than these is taken as it is.
        progress: gets parameters done and parameters in all.

    Raises:
        UsageError: a density, scope or rank that cannot be had.
        CheckpointError: a matrix without a singular value decomposition.
    """
    if rank < 1:
        raise UsageError("rank", expected="1 or more", got=rank)
    matrices = [tensor for tensor in base.space.scope(scope, include, exclude) if len(tensor.shape) == 2]
    if not matrices:
        raise UsageError(f"scope {scope!r} has no matrix to choose from", hint="widen it with --include or all")
    k, ref = budget(density, base, matrices), base.ref
    room, done = sum(tensor.size for tensor in matrices), 0
    found: list[Positions] = []
    for tensor, share in zip(matrices, _shares(k, [tensor.size for tensor in matrices]), strict=True):
        if share:
            best = Pool(share, _WORST)
            score = _low_rank(base, tensor, rank).abs_().reshape(-1)
            _offer(best, score, torch.arange(tensor.offset, tensor.offset + tensor.size))
            chosen = best.smallest()
            assert chosen is not None
            found.append(chosen)
        done += tensor.size
        if progress:
            progress(done, room)
    base.check_unchanged()
    recipe: dict[str, Plain] = {"name": "lift", "density": density, "scope": scope}
    recipe |= {"include": list(include), "exclude": list(exclude), "rank": rank}
    return Mask(ref, base.space.size, recipe, np.concatenate(found))


_WORST = 0x7FFFFFFF
"""The largest key of `_offer`: that of a score of 0."""


def _offer(best: Pool, scores: torch.Tensor, positions: torch.Tensor) -> None:
    """Scores >= 0 (m,) fp32 as keys of which the smallest are wanted: bits of such floats ascend with their value."""
    bits: npt.NDArray[np.uint32] = scores.contiguous().numpy().view(np.uint32)
    keys = np.uint32(_WORST) - bits
    hits = np.flatnonzero(keys <= np.uint32(best.bound))
    if len(hits):
        best.add(keys[hits], positions.numpy()[hits])


def _of_source(place: Placement, score: torch.Tensor, source: SpaceTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and positions (m,) of the parameters of ``source`` in a module tensor that ``score`` is aligned to."""
    flat = score.reshape(-1)
    if place.trace is None:
        return flat, torch.arange(source.offset, source.offset + source.size)
    at, local = place.elements(source)
    return flat[at], local + source.offset


@contextmanager
def _squares(model: torch.nn.Module, placements: Sequence[Placement]) -> Iterator[list[torch.Tensor]]:
    """While open, adds the square of each gradient to the list's scores and drops it; on the CPU when it closes."""
    model.requires_grad_(False)
    scores = [torch.zeros_like(place.tensor, requires_grad=False) for place in placements]

    def add(score: torch.Tensor, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        score.addcmul_(parameter.grad, parameter.grad)
        parameter.grad = None

    hooks: list[Any] = []
    for place, score in zip(placements, scores, strict=True):
        if isinstance(place.tensor, torch.nn.Parameter):
            place.tensor.requires_grad_(True)
            hooks.append(place.tensor.register_post_accumulate_grad_hook(partial(add, score)))  # type: ignore[no-untyped-call]
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()
    scores[:] = [score.cpu() for score in scores]


def _project(
    model: Any, encode: Callable[..., Any], texts: Sequence[str], size: int, seed: int, progress: Progress | None
) -> None:
    """One backward pass a batch, through the batch's representations times random signs, summed."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # texts of like length pad each other least
    signs = torch.Generator().manual_seed(seed)
    for start in range(0, len(order), size):
        with quiet():
            inputs = encode([texts[row] for row in order[start : start + size]]).to(model.device)
        states = _representations(model, inputs)
        chosen = torch.randint(0, 2, states.shape, generator=signs).mul_(2).sub_(1)
        torch.autograd.backward((states * chosen.to(states)).sum())
        if progress:
            progress(min(start + size, len(order)), len(order))


def _representations(model: Any, inputs: Any) -> torch.Tensor:
    """The mean of the last hidden states of each text's own tokens: (n, h) fp32."""
    attended = inputs["attention_mask"]
    if model.config.is_encoder_decoder:  # the decoder reads the same text, as in transformers' classifiers
        inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = inputs["input_ids"], attended
    states: torch.Tensor = model(**inputs).last_hidden_state
    return pool(states, attended, "mean")


def _low_rank(base: Base, tensor: SpaceTensor, rank: int) -> torch.Tensor:
    """The best approximation of that rank of one matrix, in fp32 (Eckart and Young, 1936)."""
    matrix = torch.from_numpy(base.read(tensor.name).float32().reshape(tensor.shape).copy())
    if rank >= min(tensor.shape):
        return matrix
    try:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:100]
        raise CheckpointError(f"{tensor.name} of {base.id} has no singular values ({reason})") from None
    kept: torch.Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return kept


def _shares(k: int, sizes: Sequence[int]) -> list[int]:
    """k in parts proportional to ``sizes``, rounded by largest remainder; of equal ones the first."""
    room = sum(sizes)
    parts = [k * size // room for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda at: -(k * sizes[at] % room))
    for at in by_remainder[: k - sum(parts)]:
        parts[at] += 1
    return parts


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UsageError("texts", expected="a list of texts", got="one string")
    if not texts:
        raise DataError("no texts to take gradients on", expected="at least 1, better some hundreds")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {number} of {len(texts)}", expected="a text", got=ascii(text)[:40])
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"text {number} of {len(texts)}", expected="valid Unicode", got="half a surrogate pair"
            ) from None
