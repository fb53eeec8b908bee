"""Muon, with matrices of one shape orthogonalised together: one batched product costs a fraction of many small ones on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor

import torch
from torch import Tensor, nn

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024)


def orthogonalise(matrices: Tensor) -> Tensor:
    """[N, rows, columns] to nearly orthogonal matrices of the same row and column spaces (Newton-Schulz, bfloat16)."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon:
    """Momentum, orthogonalised: every update has the size that AdamW's would have (0.2 * sqrt(larger side) per matrix)."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            shapes[parameter.shape].append(parameter)
        self.groups = list(shapes.values())
        self.velocity = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    def step(self, rate: float, pool: Executor) -> None:
        """Updates every parameter from its `.grad`; shapes are spread over the pool's threads."""
        list(pool.map(lambda index: self._update(index, rate), range(len(self.groups))))

    @torch.no_grad()
    def _update(self, index: int, rate: float) -> None:
        group, velocity = self.groups[index], self.velocity[index]
        gradient = torch.stack([p.grad for p in group if p.grad is not None])
        velocity.lerp_(gradient, 1 - self.momentum)
        update = orthogonalise(gradient.lerp_(velocity, self.momentum))
        scale = rate * 0.2 * max(group[0].shape) ** 0.5
        for parameter, change in zip(group, update, strict=True):
            parameter.mul_(1 - rate * self.weight_decay).sub_(change, alpha=scale)
