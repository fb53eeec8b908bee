"""Rounding that minimises what the error does to the layer's outputs, where it is known how large each input usually is.

The error of a row's output is about sum((w - rounded)² * mean square of the input) over its columns. Per block, scales that cut the largest
values a little are tried beside those that keep them; each is fitted by least squares to the codes that it gives, and the best one wins.
Without those squares such a search harms: it gives up large weights, which stand where inputs are large (`tools/perplexity.py`, in
docs/quantisation.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of the range that a block needs. Finer steps (0.05) improve nothing that a perplexity shows.
SHRINKS = (1.0, 0.85, 0.7)
REFITS = 2  # rounding again with the fitted scale; a third changes less than one code in a thousand
FLOOR = 0.01  # of a block's mean square: what few tokens never excited is not worthless


def block_weights(squares: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Mean squares of inputs [K] to weights [blocks, block] of about 1; padding has FLOOR."""
    blocks = -(-len(squares) // block)
    padded = np.zeros(blocks * block, np.float32)
    padded[: len(squares)] = squares
    rows = padded.reshape(blocks, block)
    means = rows.mean(1, keepdims=True)
    weights: NDArray[np.float32] = np.divide(rows, means, out=np.ones_like(rows), where=means > 0)
    weights += np.float32(FLOOR)
    return weights


def search(
    values: NDArray[np.float32], weights: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centred codes as floats [n, blocks, block] and scales [n, blocks] of `values` [n, blocks, block]."""
    zero = 1 << (bits - 1)
    weighed = values * weights
    codes, work = np.empty_like(values), np.empty_like(values)

    def fit(scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Leaves the codes that the scales give in `codes`. Returns products with the values and with themselves [n, blocks]."""
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
        np.multiply(values, inverse[..., None], out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, -zero, zero - 1, out=codes)
        np.multiply(codes, codes, out=work)
        return np.einsum("nbk,nbk->nb", codes, weighed), np.einsum("nbk,bk->nb", work, weights)

    high, low = values.max(-1), values.min(-1)
    extreme = np.where(high > -low, high, low)
    best = np.zeros_like(extreme)
    scales = np.zeros_like(extreme)
    for shrink in SHRINKS:
        for reach in (-zero, zero - 1):  # the code that the largest value becomes
            tried = extreme * np.float32(shrink / reach)
            products, own = fit(tried)
            # By how much the best multiple of these codes lowers the error.
            gains = np.divide(products * products, own, out=np.zeros_like(own), where=own > 0)
            better = gains > best
            best[better], scales[better] = gains[better], tried[better]
    for _ in range(REFITS):
        products, own = fit(scales)
        scales = np.divide(products, own, out=np.zeros_like(own), where=own > 0)
    return codes, scales
