"""Linear layers on a torch device: plain matrices, or codes that stay quantised there and become numbers inside the product.

A coded weight is `code * scale + shift` with one scale and shift per row and block of columns. Without a `shift` tensor it is
`(code - zero) * scale` with `zero` in the middle of the codes. Two ways compute the same product:

- `expand`: dequantise into the compute type, then a matrix product. For many rows, and for every device and block size.
- fused (`expand` None): the product written as a sum over codes. torch.compile makes one kernel of it that reads each code once and writes
  nothing but the result, which is what decoding on a GPU is bound by. Run eagerly it is right, but keeps all of it in memory.

`torch._weight_int8pack_mm` knows one scale per row only, and `torch._weight_int4pack_mm` rounds scales to bfloat16, takes bfloat16 rows,
not every block size, and its own order of codes (a second copy for prefill): the sum takes packs as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mdi.errors import ModelError
from mdi.model.linear import LinearPart
from mdi.model.packs import DTYPES, Pack, PackedPart, PackTensor


class PlainPart(NamedTuple):
    """A weight [N, K] in the compute type."""

    weight: Tensor


class CodedPart(NamedTuple):
    """codes uint8 [N, blocks, block bits / 8] (low nibble first); scales and shift float32 [N, blocks]; order int64 [K].

    With an `order`, stored column j multiplies input column `order[j]`. Columns beyond K are padding.
    """

    codes: Tensor
    scales: Tensor
    shift: Tensor | None
    order: Tensor | None
    bits: int
    columns: int


Part: TypeAlias = PlainPart | CodedPart
Linear: TypeAlias = tuple[Part, ...]  # rows of the weight from top to bottom
Expand: TypeAlias = Callable[[CodedPart, torch.dtype], Tensor]


def linear(x: Tensor, parts: Linear, dtype: torch.dtype, expand: Expand | None) -> Tensor:
    """x float32 [R, K] times the weight [N, K] transposed: float32 [R, N]. Products in `dtype`, or in float32 where fused."""
    results = [_product(x, part, dtype, expand) for part in parts]
    return results[0] if len(results) == 1 else torch.cat(results, dim=-1)


def _product(x: Tensor, part: Part, dtype: torch.dtype, expand: Expand | None) -> Tensor:
    if isinstance(part, PlainPart):
        return functional.linear(x.to(dtype), part.weight).float()
    if part.order is not None:
        x = x[:, part.order]
    if expand is None:
        return _sum_of_codes(x, part)
    return functional.linear(x.to(dtype), expand(part, dtype)).float()


def dequantise(part: CodedPart, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] of a part, its columns in stored order."""
    codes = torch.stack(_digits(part), dim=-1).flatten(2)  # [N, blocks, block]
    # In place, and bytes until now: run eagerly, every pass over the weight counts (4 times slower otherwise).
    weight = codes.float()
    scales = part.scales.unsqueeze(-1)
    if part.shift is None:
        weight.sub_(_zero(part)).mul_(scales)
    else:
        weight.mul_(scales).add_(part.shift.unsqueeze(-1))
    return weight.to(dtype).flatten(1)[:, : part.columns]


def _sum_of_codes(x: Tensor, part: CodedPart) -> Tensor:
    """One reduction per row over the same codes; written side by side, so that a compiler reads them once for all rows."""
    _, blocks, block_bytes = part.codes.shape
    per_byte = 8 // part.bits
    x = functional.pad(x, (0, blocks * block_bytes * per_byte - part.columns))
    x = x.reshape(len(x), blocks, block_bytes, per_byte)
    weights = [_weights(part, digit.float()) for digit in _digits(part)]
    rows = []
    for row in range(len(x)):
        products = weights[0] * x[row, :, :, 0]
        for i in range(1, per_byte):
            products = products + weights[i] * x[row, :, :, i]
        rows.append(products.sum((1, 2)))
    return torch.stack(rows)  # [R, N]


def _digits(part: CodedPart) -> list[Tensor]:
    """The codes of each byte, first the ones that come first: uint8 [N, blocks, bytes]."""
    if part.bits == 8:
        return [part.codes]
    return [part.codes & 15, part.codes >> 4]


def _weights(part: CodedPart, codes: Tensor) -> Tensor:
    """Codes [N, blocks, *] as numbers."""
    scales = part.scales.unsqueeze(-1)
    if part.shift is None:
        return (codes - _zero(part)) * scales
    return codes * scales + part.shift.unsqueeze(-1)


def _zero(part: CodedPart) -> int:
    """The code that means 0 in a part without `shift`."""
    return 1 << (part.bits - 1)


def stacked(part: Part, n: int) -> Part:
    """The rows of a part as `n` weights of equally many rows: its tensors get one more dimension, the first."""

    def split(rows: Tensor) -> Tensor:
        return rows.view(n, -1, *rows.shape[1:])

    if isinstance(part, PlainPart):
        return PlainPart(split(part.weight))
    shift = None if part.shift is None else split(part.shift)
    return part._replace(codes=split(part.codes), scales=split(part.scales), shift=shift)


def take(part: Part, which: int | Tensor) -> Part:
    """Of a stacked part: one weight, or those that `which` int64 [M] names, stacked again. Copies unless `which` is an int."""
    if isinstance(part, PlainPart):
        return PlainPart(part.weight[which])
    shift = None if part.shift is None else part.shift[which]
    return part._replace(codes=part.codes[which], scales=part.scales[which], shift=shift)


def paired_products(x: Tensor, part: Part) -> Tensor:
    """x float32 [M, K], each row times its own weight [N, K] of a stacked part: [M, N]. Fused, as sums over what is stored."""
    if isinstance(part, PlainPart):
        return (part.weight.float() * x.unsqueeze(1)).sum(-1)
    if part.order is not None:
        x = x[:, part.order]
    blocks, block_bytes = part.codes.shape[-2:]
    per_byte = 8 // part.bits
    x = functional.pad(x, (0, blocks * block_bytes * per_byte - part.columns))
    x = x.reshape(len(x), 1, blocks, block_bytes, per_byte)
    weights = [_weights(part, digit.float()) for digit in _digits(part)]  # of each [M, N, blocks, bytes]
    products = weights[0] * x[..., 0]
    for i in range(1, per_byte):
        products = products + weights[i] * x[..., i]
    return products.sum((2, 3))


def load_linear(
    pack: Pack, name: str, columns: int, device: torch.device, dtype: torch.dtype, *, rows: int | None = None
) -> Linear:
    """The linear layer `name` of a pack, on the device. Raises ModelError when it is missing or has another shape."""
    places = pack.linears.get(name, ())
    if not places or places[0].part.columns != columns:
        raise ModelError(f"pack {pack.path.name} has no linear layer {name} of {columns} columns")
    found = sum(place.part.rows for place in places)
    if rows is not None and found != rows:
        raise ModelError(f"the linear layer {name} of pack {pack.path.name} has {found} rows, not {rows}")
    return tuple(_load_part(pack, place, device, dtype) for place in places)


def _load_part(pack: Pack, place: PackedPart, device: torch.device, dtype: torch.dtype) -> Part:
    part = place.part
    tensors = {kind: load_tensor(pack, f"{place.prefix}.{kind}") for kind in part.tensors()}
    if part.bits == 32:
        return PlainPart(tensors["weight"].to(device, dtype))
    shift = _shift(part, tensors)
    order = tensors.get("order")
    return CodedPart(
        tensors["codes"].to(device),
        tensors["scales"].to(device),
        None if shift is None else shift.to(device),
        None if order is None else order.to(device, torch.int64),
        part.bits,
        part.columns,
    )


def _shift(part: LinearPart, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What `code * scale` lacks, zeros and correction in one: float32 [N, blocks]. None: zeros are the middle of the codes."""
    if not (part.zeros or part.correction):
        return None
    zeros: Tensor | int = 1 << (part.bits - 1)
    if part.zeros:
        packed = tensors["zeros"]
        zeros = packed if part.bits == 8 else torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, : part.blocks]
    shift = -(tensors["scales"] * zeros)
    return shift + tensors["correction"] if part.correction else shift


def load_vector(pack: Pack, name: str, device: torch.device, shape: tuple[int, ...]) -> Tensor:
    """A norm's weight, a bias, or another small tensor: float32. Raises ModelError when it is missing or has another shape."""
    found = load_tensor(pack, name)
    if tuple(found.shape) != shape:
        raise ModelError(f"tensor {name} of pack {pack.path.name} has the shape {list(found.shape)}, not {list(shape)}")
    return found.to(device, torch.float32)


def load_tensor(pack: Pack, name: str) -> Tensor:
    """A tensor in memory that is the pack's file, mapped: on the CPU it is never copied. Raises ModelError when it is missing."""
    place = pack.tensors.get(name)
    if place is None:
        raise ModelError(f"pack {pack.path.name} has no tensor {name}")
    return _mapped(pack, place)


def _mapped(pack: Pack, place: PackTensor) -> Tensor:
    # Mode c: torch warns of memory that cannot be written. Nobody writes, so no page is ever copied.
    array = np.memmap(pack.path, DTYPES[place.dtype], mode="c", offset=place.offset, shape=place.shape)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if place.dtype == "BF16" else tensor


def held_bytes(weights: object) -> int:
    """Bytes that tensors in tuples take on their device: of a layer, what one product reads."""
    if isinstance(weights, Tensor):
        return weights.nbytes
    return sum(held_bytes(each) for each in weights) if isinstance(weights, tuple) else 0
