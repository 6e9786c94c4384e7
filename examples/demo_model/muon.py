"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal before each step.

In: the matrices of a network with their gradients. Out: changed matrices. In float32, and all
matrices of one shape at once, which suits a CPU.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change every matrix by one step."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                same_shape[matrix.shape].append(matrix)
            for shape, matrices in same_shape.items():
                pulls = torch.stack([self._pull(m, group["momentum"]) for m in matrices])
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, change in zip(matrices, orthogonal(pulls), strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).sub_(change, alpha=rate)

    def _pull(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None, "every matrix takes part in the loss"
        velocity = self.state[matrix].setdefault("velocity", torch.zeros_like(matrix))
        velocity.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(velocity, momentum)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by a quintic Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
