"""HiWi: a bottleneck adapter on parameters instead of hidden states, thrown away after training.

`b' = b + f(b W_down) W_up` for a bias b (d,), `W' = W + f(W W_down) W_up` for a weight W (out, in) (Liao et al., ACL
2023). Only the results are ever in the model, so a forward pass costs what the base's does. For a bias, what is stored
does not depend on the bottleneck; for a weight it is the low-rank pair `f(W W_down)` (out, r), `W_up` (r, in).

The gradient reaches the adapter by the chain rule from the gradient G of the new parameter, which the hook receives:
with Z = W W_down and H = f(Z): `dW_up = H' G`, `dW_down = W' ((G W_up') * f'(Z))` (' is the transpose).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from deltahub.dense import low_rank
from deltahub.errors import UsageError
from deltahub.tuning.parts import Hook, Part, slashed

Function = Callable[[torch.Tensor], torch.Tensor]


def _gelu_slope(z: torch.Tensor) -> torch.Tensor:
    slope: torch.Tensor = torch.special.ndtr(z) + z * torch.exp(-0.5 * z * z) / (2 * torch.pi) ** 0.5
    return slope


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "gelu": (nn.functional.gelu, _gelu_slope),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
}
"""Name to f and its derivative. A ReLU unit that is off for a bias stays off: its input never changes."""


class HiWi(Part):
    """Adapters on some tensors of the model.

    ``W_down`` starts normal with variance 1 / (mean squared length of the rows of W), so that W W_down is of order 1
    whatever the scale of W; ``W_up`` starts at zero, so that training begins at the base (both our choice).

    Args:
        tensors: parameters of the model by their name in the base; (d,) or (out, in); not constantly zero.
        bottleneck: r, 1 or more.
        activation: one of ACTIVATIONS.
        generator: for ``W_down``.
    """

    def __init__(
        self, tensors: Mapping[str, nn.Parameter], *, bottleneck: int, activation: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UsageError(f"activation {activation!r}", expected=f"one of {', '.join(ACTIVATIONS)}")
        if bottleneck < 1:
            raise UsageError("bottleneck", expected="1 or more", got=bottleneck)
        self.names = tuple(tensors)
        self._targets = tuple(tensors.values())
        self._bases = tuple(target.detach().clone() for target in self._targets)
        self._f, self._slope = ACTIVATIONS[activation]
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, target in tensors.items():
            rows = _rows(target.detach()).float()
            start = torch.randn(rows.shape[1], bottleneck, generator=generator).to(rows.device)
            self.down[slashed(name)] = nn.Parameter(start / rows.square().sum(1).mean().sqrt())
            self.up[slashed(name)] = nn.Parameter(torch.zeros(bottleneck, rows.shape[1], device=rows.device))
            self.watch(target, self._hook(name, self._bases[len(self.down) - 1]))

    @torch.no_grad()
    def write(self) -> None:
        for name, target, base in zip(self.names, self._targets, self._bases, strict=True):
            target.data.copy_(low_rank(_rows(base), *self.factors(name)).view_as(target))

    def targets(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of each adapted tensor."""
        return list(zip(self.names, self._targets, strict=True))

    @torch.no_grad()
    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``f(W W_down)`` (out, r) and ``W_up`` (r, in), fp32: what W changes by is their product."""
        base = self._bases[self.names.index(name)]
        return self._f(_rows(base).float() @ self.down[slashed(name)]), self.up[slashed(name)].detach()

    @torch.no_grad()
    def settle(self) -> None:
        """Makes the model's tensors what the CPU computes of the factors, as whoever loads them will."""
        for name, target, base in zip(self.names, self._targets, self._bases, strict=True):
            if target.device.type != "cpu":
                up, down = (factor.cpu() for factor in self.factors(name))
                target.data.copy_(low_rank(_rows(base).cpu(), up, down).view_as(target))

    def _hook(self, name: str, base: torch.Tensor) -> Hook:
        down, up = self.down[slashed(name)], self.up[slashed(name)]

        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            with torch.no_grad():
                weight, gradient = _rows(base).float(), _rows(parameter.grad).float()
                parameter.grad = None
                z = weight @ down
                _add(up, self._f(z).T @ gradient)
                _add(down, weight.T @ ((gradient @ up.T) * self._slope(z)))

        return hook


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A bias (d,) as the matrix (1, d)."""
    return tensor if tensor.ndim == 2 else tensor.unsqueeze(0)


def _add(master: torch.Tensor, gradient: torch.Tensor) -> None:
    master.grad = gradient if master.grad is None else master.grad + gradient
