"""GPTQ and AWQ checkpoints that cannot be taken exactly are refused when they are opened, or where their order is read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.gptq_awq import LAYOUTS, Coding, Method
from mdi.model.linear import Quantised, dequantise
from mdi.model.shards import StoredTensor
from tests.checkpoints import edit_json, make_checkpoint
from tests.coded_checkpoints import Arrays, Scheme, code_checkpoint

NAME = "model.layers.0.mlp.down_proj"


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    code_checkpoint(make_checkpoint(tmp_path / "floats", num_hidden_layers=1), Scheme())
    return tmp_path / "coded"


def change(directory: Path, edit: Callable[[Arrays], object]) -> None:
    tensors: Arrays = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def replace(kind: str, to: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], object]:
    name = f"{NAME}.{kind}"
    return lambda tensors: tensors.update({name: np.ascontiguousarray(to(tensors[name]))})


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop(f"{NAME}.qzeros"), "qzeros"),
        (lambda t: t.pop(f"{NAME}.scales"), "scales"),
        (lambda t: t.pop(f"{NAME}.qweight"), f"{NAME}.weight"),
        (replace("qweight", lambda a: a[:, :8]), "qweight"),
        (replace("qweight", lambda a: a[:9]), "3 bits"),
        (replace("qweight", lambda a: a.astype(np.float32)), "F32"),
        (replace("qzeros", lambda a: a[:, :1]), "qzeros"),
        (replace("scales", lambda a: a.astype(np.int32)), "I32"),
        (replace("g_idx", lambda a: a[:-1]), "g_idx"),
        (lambda t: [replace(kind, lambda a: a.repeat(4, 0)[:10])(t) for kind in ("scales", "qzeros")], "10 groups"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_on_opening(coded: Path, edit: Callable[[Arrays], object], named: str) -> None:
    change(coded, edit)
    with pytest.raises(ModelError) as refused:
        Checkpoint.open(coded)
    assert named in str(refused.value)


@pytest.mark.parametrize("name", ["model.norm", "model.embed_tokens", "model.layers.0.input_layernorm"])
def test_codes_where_only_floats_can_be_are_refused(coded: Path, name: str) -> None:
    def replace_by_codes(tensors: Arrays) -> None:
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{kind}": tensors[f"{NAME}.{kind}"].copy() for kind in ("qweight", "qzeros", "scales", "g_idx")}

    change(coded, replace_by_codes)
    with pytest.raises(ModelError, match=rf"lacks the tensor {name}\.weight"):
        Checkpoint.open(coded)


@pytest.mark.parametrize("method", Method)
def test_rows_that_fill_no_whole_words_are_refused_on_opening(tmp_path: Path, method: Method) -> None:
    coding = Coding(method, LAYOUTS[method][0], 32)
    qweight = (8, 36) if method is Method.GPTQ else (64, 4)
    found = {
        kind: StoredTensor(dtype, shape, 0, 0)
        for kind, dtype, shape in (("qweight", "I32", qweight), ("qzeros", "I32", (2, 4)), ("scales", "F16", (2, 36)))
    }
    with pytest.raises(ModelError, match="36 x 64"):
        coding.check("model.layers.0.mlp.down_proj", (36, 64), found)


def test_a_config_that_promises_millions_of_experts_is_refused_at_once(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "mixtral")
    scheme = Scheme().config()
    edit_json(directory / "config.json", num_local_experts=4096, num_hidden_layers=1024, quantization_config=scheme)
    began = time.process_time()
    with pytest.raises(ModelError, match="and 999 more"):
        Checkpoint.open(directory)
    assert time.process_time() - began < 5  # not after looking for the codes of all 12 million


def test_an_order_that_is_no_grouping_is_refused(coded: Path) -> None:
    change(coded, replace("g_idx", lambda a: np.where(np.arange(len(a)) == 40, 0, a)))
    with pytest.raises(ModelError, match="g_idx"):
        Checkpoint.open(coded).linear(f"{NAME}.weight")


def test_an_order_that_old_tools_left_zero_is_none(coded: Path) -> None:
    (wanted,) = Checkpoint.open(coded).linear(f"{NAME}.weight")
    change(coded, replace("g_idx", np.zeros_like))
    (found,) = Checkpoint.open(coded).linear(f"{NAME}.weight")
    np.testing.assert_array_equal(dequantise(found), dequantise(wanted))


def test_a_group_larger_than_any_block_becomes_several_blocks(tmp_path: Path) -> None:
    floats = make_checkpoint(tmp_path / "floats", num_hidden_layers=1, intermediate_size=1088)
    matrices = code_checkpoint(floats, Scheme(group=512))
    (found,) = Checkpoint.open(tmp_path / "coded").linear(f"{NAME}.weight")
    assert isinstance(found, Quantised)
    assert found.part.block == 256
    np.testing.assert_array_equal(dequantise(found), matrices[f"{NAME}.weight"].values())


def test_autogptqs_own_config_file_is_read_where_config_json_is_silent(coded: Path) -> None:
    wanted = Checkpoint.open(coded)
    scheme = json.loads((coded / "config.json").read_text())["quantization_config"]
    edit_json(coded / "config.json", "quantization_config")
    (coded / "quantize_config.json").write_text(json.dumps({n: v for n, v in scheme.items() if n != "quant_method"}))
    found = Checkpoint.open(coded)
    assert found.quantised
    assert found.fingerprint() == wanted.fingerprint()


def test_formats_of_zeros_have_different_fingerprints(coded: Path) -> None:
    before = Checkpoint.open(coded).fingerprint()
    edit_json(coded / "config.json", quantization_config=Scheme(layout="gptq_v2").config())
    assert Checkpoint.open(coded).fingerprint() != before


def test_a_router_of_codes_is_read_as_the_floats_that_they_mean(coded: Path) -> None:
    checkpoint = Checkpoint.open(coded)
    (part,) = checkpoint.linear(f"{NAME}.weight")
    np.testing.assert_array_equal(checkpoint.tensor(f"{NAME}.weight"), dequantise(part))
