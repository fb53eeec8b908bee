"""The graph's linear layers compute with exactly the weights that a pack means, whatever forms its parts have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from mdi.engine.graph import GraphBuilder
from mdi.engine.onnx_engine import open_session
from mdi.errors import ModelError
from mdi.model.linear import Linear, LinearPart, dequantise
from mdi.model.packs import Pack, PackKind, open_pack, write_pack
from tests.model.parts import random_part

K = 192
FORMS = {
    "fp32": LinearPart(24, K, 32),
    "int4 blocks of 16": LinearPart(24, K, 4, 16),
    "int4 blocks of 32": LinearPart(24, K, 4, 32),
    "int4 blocks of 64": LinearPart(24, K, 4, 64),
    "int4, padded": LinearPart(24, K, 4, 128),
    "int4 in one block": LinearPart(24, K, 4, 256),
    "int4 with zeros": LinearPart(24, K, 4, 64, zeros=True),
    "int8 blocks of 16": LinearPart(24, K, 8, 16),
    "int8 with zeros": LinearPart(24, K, 8, 32, zeros=True),
    "int4 corrected": LinearPart(24, K, 4, 32, correction=True),
    "int8 with zeros, corrected": LinearPart(24, K, 8, 32, zeros=True, correction=True),
    "int4 in another order": LinearPart(24, K, 4, 32, order=True),
    "int4 with everything": LinearPart(24, K, 4, 32, zeros=True, correction=True, order=True),
}
ROUNDING = 0.02  # of max |y|: activations are rounded to int8 per block (accuracy_level 4); measured: 0.004


def pack_of(directory: Path, linears: dict[str, Linear]) -> Pack:
    return open_pack(directory / write_pack(directory, PackKind.BLOCK, dict(linears)).filename)


def products(pack: Pack, x: NDArray[np.float32], *names: str) -> list[NDArray[np.float32]]:
    g = GraphBuilder("linear")
    g.input("x", TensorProto.FLOAT, ["T", K])
    for name in names:
        g.linear(f"y.{name}", "x", pack, name, K)
        g.output(f"y.{name}", TensorProto.FLOAT, ["T", "N"])
    return list(open_session(g.model(), pack.path.parent, threads=1).run(None, {"x": x}))


def assert_close(found: NDArray[np.float32], x: NDArray[np.float32], linear: Linear) -> None:
    wanted = x @ np.concatenate([dequantise(part) for part in linear]).T
    np.testing.assert_allclose(found, wanted, atol=ROUNDING * np.abs(wanted).max(), rtol=0)


@pytest.fixture(params=[1, 5])
def x(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    return np.random.default_rng(9).standard_normal((request.param, K), dtype=np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_one_part(form: str, x: NDArray[np.float32], tmp_path: Path) -> None:
    linear = (random_part(FORMS[form]),)
    (found,) = products(pack_of(tmp_path, {"w": linear}), x, "w")
    assert_close(found, x, linear)


def test_parts_of_all_forms_side_by_side(x: NDArray[np.float32], tmp_path: Path) -> None:
    linear = tuple(random_part(form, seed) for seed, form in enumerate(FORMS.values()))
    (found,) = products(pack_of(tmp_path, {"w": linear}), x, "w")
    assert found.shape == (len(x), 24 * len(FORMS))
    for i, part in enumerate(linear):  # part by part: the fp32 tolerance must not be that of the coarsest
        assert_close(found[:, 24 * i : 24 * (i + 1)], x, (part,))


def test_linears_of_one_input_share_its_block_sums(x: NDArray[np.float32], tmp_path: Path) -> None:
    linears: dict[str, Linear] = {name: (random_part(FORMS["int4 corrected"], seed),) for seed, name in enumerate("ab")}
    pack = pack_of(tmp_path, linears)
    for name, found in zip("ab", products(pack, x, "a", "b"), strict=True):
        assert_close(found, x, linears[name])
    g = GraphBuilder("linear")
    for name in "ab":
        g.linear(f"y.{name}", "x", pack, name, K)
    ops = [node.op_type for node in onnx.load_from_string(g.model()).graph.node]
    assert (ops.count("MatMulNBits"), ops.count("ReduceSum")) == (2, 1)


@pytest.mark.parametrize(("name", "k"), [("absent", K), ("w", K - 1)])
def test_a_layer_that_is_not_in_the_pack_is_refused(name: str, k: int, tmp_path: Path) -> None:
    pack = pack_of(tmp_path, {"w": (random_part(FORMS["fp32"]),)})
    with pytest.raises(ModelError, match=name):
        GraphBuilder("linear").linear("y", "x", pack, name, k)
