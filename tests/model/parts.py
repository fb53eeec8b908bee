"""Random linear layers in any form."""

from __future__ import annotations

import numpy as np

from mdi.model.linear import LinearPart, Part, restored


def random_part(form: LinearPart, seed: int = 0) -> Part:
    """Values of about unit variance in whatever form, so that products of unit rows stay of the order of sqrt(K)."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for kind, (dtype, shape) in form.tensors().items():
        if dtype == "U8":
            arrays[kind] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif kind == "order":
            arrays[kind] = rng.permutation(form.columns).astype(np.int32)
        else:
            size = np.float32(1.0 if kind == "weight" else 4.0 / (1 << form.bits))
            arrays[kind] = rng.standard_normal(shape, dtype=np.float32) * size
    return restored(form, arrays)
