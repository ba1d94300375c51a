"""Several processes that share a step: their gradients are averaged, and only those of what is trained travel."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import deltahub as dh
from deltahub.heads import load_tokenizer
from deltahub.tuning.batches import Collator, examples
from tests.tuning.conftest import task_of, word_task, write_text_base

PATIENCE = timedelta(seconds=120)
CHILD = """
import sys
import torch
from tests.tuning.test_processes import joined_step
torch.set_num_threads(1)
base, store, out = sys.argv[1:]
torch.save(joined_step(base, store, 1).state_dict(), out)
"""


def step(folder: str, rank: int, world: int) -> dh.tuning.DeltaModel:
    """A step of plain gradient descent on this process's share of 16 rows, gradients averaged over all."""
    base = dh.Base.open(folder, cache=Path(folder) / "cache")
    delta_model = task_of(base, dh.Mask.build(base, density=0.1)).eval()
    rows = word_task(16, 1)
    tokenizer = load_tokenizer(base)
    optimizer = torch.optim.SGD(delta_model.parameters(), lr=0.1)
    batch: dict[str, Any] = Collator(tokenizer)(examples(tokenizer, rows, 16)[rank::world])
    delta_model(**batch).loss.backward()
    if world > 1:
        delta_model.reduce_gradients()
    optimizer.step()
    return delta_model


def joined_step(folder: str, store: str, rank: int) -> dh.tuning.DeltaModel:
    """One of the two halves of a step; only the gradients of what is trained travel."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=PATIENCE)
    whole, travelled = dist.all_reduce, []

    def counted(tensor: torch.Tensor, *rest: Any, **more: Any) -> Any:
        travelled.append(tensor.numel())
        return whole(tensor, *rest, **more)

    dist.all_reduce = counted
    try:
        delta_model = step(folder, rank, 2)
    finally:
        dist.all_reduce = whole
        dist.destroy_process_group()
    assert travelled == [delta_model.trained_parameters]
    return delta_model


def test_two_processes_step_as_one_and_only_masters_gradients_travel(tmp_path: Path) -> None:
    folder, store, out = str(tmp_path / "base"), str(tmp_path / "store"), tmp_path / "second.pt"
    write_text_base(Path(folder))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, folder, store, str(out)],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        first = joined_step(folder, store, 0).state_dict()
        _, err = child.communicate(timeout=PATIENCE.seconds)
    assert child.returncode == 0, err
    second, alone = torch.load(out, weights_only=True), step(folder, 0, 1).state_dict()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
