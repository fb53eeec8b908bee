"""Which form of the block functions runs: compiled for few rows on an accelerator, plain torch otherwise.

Compiled, the parts around attention are about ten kernels a block, and dequantising happens inside the products (see `torch_weights.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mdi.engine.torch_blocks import after_attention, before_attention
from mdi.engine.torch_weights import Expand, dequantise, linear

# Up to this many rows the sum over codes is one kernel that holds a running sum per row in registers. Beyond it, dequantising once for
# all rows and a product on the tensor cores is the better half of a bad choice.
FUSED_ROWS = 8
# Kinds of block functions in one process: models and measurements, times row counts, times mixtures of weight formats. torch's own
# limit of 8 is meant to find functions that are compiled by mistake; ours are all compiled while a stage loads.
COMPILED_VARIANTS = 256
# Compiled and plain kernels must agree so far over a whole stage: different rounding to bfloat16 leaves 0.999, a wrong kernel about 0.
LEAST_COSINE = 0.99
# With experts rounding also turns near ties of the router, and another expert computes something else for its share.
LEAST_SPARSE_COSINE = 0.8
REASON_LINES = 3  # of a compiler's message: torch names itself in the first, and what failed in those below


@dataclass(frozen=True, slots=True)
class Functions:
    """`linear`, `before_attention` and `after_attention`, and the `expand` that they are to be called with."""

    linear: Callable[..., Tensor]
    before: Callable[..., Tensor]
    after: Callable[..., Tensor]
    expand: Expand | None


@dataclass(frozen=True, slots=True)
class Kernels:
    """`few` None: nothing is compiled."""

    few: Functions | None
    many: Functions

    def for_rows(self, n_rows: int) -> Functions:
        return self.few if self.few is not None and n_rows <= FUSED_ROWS else self.many


EAGER = Kernels(None, Functions(linear, before_attention, after_attention, dequantise))


@cache
def compiled_kernels(backend: str = "inductor") -> Kernels:
    """Compiles at the first call with each shape, not here."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILED_VARIANTS)
    # Tuning by coordinate descent also turns products of one row into reductions, which fuse with what is around them (gpt-fast
    # takes the same switch for its decode step).
    options: dict[str, Any] = {"coordinate_descent_tuning": True} if backend == "inductor" else {}

    def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        result: Callable[..., Tensor] = torch.compile(
            function, fullgraph=True, dynamic=False, backend=backend, options=options or None
        )
        return result

    few = Functions(compiled(linear), compiled(before_attention), compiled(after_attention), None)
    return Kernels(few, Functions(linear, before_attention, after_attention, compiled(dequantise)))


def kernels_for(device: torch.device) -> Kernels:
    return EAGER if device.type == "cpu" else compiled_kernels()


def difference(compiled: Callable[[], Tensor], plain: Callable[[], Tensor], least_cosine: float = LEAST_COSINE) -> str | None:
    """Why compiled kernels cannot be used: they do not compile, or do not compute what the plain ones do. None: they can."""
    try:
        found = compiled()
    except Exception as error:  # compilers fail in every way: a missing gcc, an unknown GPU, bugs of their own
        lines = str(error).split("\n")[:REASON_LINES]
        return " ".join([type(error).__name__, *(line.strip() for line in lines if line.strip())])
    cosine = cosine_similarity(found.flatten(), plain().flatten(), dim=0).item()
    return None if cosine >= least_cosine else f"they compute something else on this device (cosine {cosine:.4f})"
