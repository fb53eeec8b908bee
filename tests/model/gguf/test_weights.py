from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi.errors import ModelError, UserError
from mdi.model.chat import Message
from mdi.model.gguf import types
from mdi.model.gguf.files import Gguf
from mdi.model.gguf.metadata import Texts
from mdi.model.gguf.types import GgmlType
from mdi.model.gguf.weights import GgufWeights
from mdi.model.linear import Quantised, dequantise
from mdi.model.packed import source_bytes
from mdi.model.packs import open_pack
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import Model, ModelSource, resolve
from tests.checkpoints import make_checkpoint
from tests.gguf_models import make_twins
from tests.model.gguf.written import Tensor, Typed, Written

Edit = Callable[[dict[str, Any], dict[str, Tensor]], Any]
IQ1_S = GgmlType("IQ1_S", 256, 50)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q4_K with a Q6_K head and embedding, as Q4_K_M files are."""
    directory = tmp_path_factory.mktemp("mixed")
    four, _ = make_twins(directory / "four", types.Q4_K, vocab_size=320)
    six, _ = make_twins(directory / "six", types.Q6_K, vocab_size=320)
    tensors = read_tensors(four) | {name: read_tensors(six)[name] for name in ("output.weight", "token_embd.weight")}
    return Written(read_metadata(four), tensors).save(directory / "mixed-Q4_K_M.gguf")


def read_metadata(path: Path) -> dict[str, Any]:
    metadata = Gguf.open(path).metadata
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, Texts) else value
        for key, value in metadata.items()
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    gguf = Gguf.open(path)
    return {name: (info.type, info.shape, gguf.rows(name).tobytes()) for name, info in gguf.tensors.items()}


def test_each_tensor_comes_in_its_own_exact_form(mixed: Path) -> None:
    weights = GgufWeights.open(Gguf.open(mixed))
    (block,) = weights.linear(weights.block_tensors(0)[next(role for role in weights.block_tensors(0) if role == "down")])
    (head,) = weights.linear(weights.head)
    assert isinstance(block, Quantised)
    assert isinstance(head, Quantised)
    assert (block.bits, block.correction is not None) == (4, True)
    assert (head.bits, head.part.block) == (8, 16)
    assert weights.main_format() == WeightFormat(4, 32)
    assert isinstance(weights.table(weights.embedding), Quantised)


def test_bytes_are_known_before_anything_is_converted(mixed: Path, tmp_path: Path) -> None:
    from mdi.model.packed import prepare

    weights = GgufWeights.open(Gguf.open(mixed))
    block, head = source_bytes(weights, WeightFormat(4, 32))
    packed = prepare(weights, WeightFormat(4, 32), tmp_path)
    for expected, ref in ((block, packed.blocks[0]), (head, packed.head)):
        assert 0 <= ref.n_bytes - expected < 4096  # the header
        assert open_pack(tmp_path / ref.filename)


def test_rounding_anew_starts_from_the_same_values(mixed: Path) -> None:
    exact = GgufWeights.open(Gguf.open(mixed))
    anew = GgufWeights.open(Gguf.open(mixed), exact=False)
    assert (exact.quantised, anew.quantised) == (True, False)
    assert exact.fingerprint() != anew.fingerprint()
    for name in exact.block_tensors(1).values():
        if "norm" in name:
            continue
        ((a,), (b,)) = exact.linear(name), anew.linear(name)
        assert isinstance(b, np.ndarray)
        np.testing.assert_allclose(dequantise(a), b, atol=1e-6, rtol=0)
        assert anew.forms(name) is None


def drop(name: str) -> Edit:
    return lambda metadata, tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Edit:
    return lambda metadata, tensors: tensors.update({name: tensor})


def say(key: str, value: Any) -> Edit:
    return lambda metadata, tensors: metadata.update({key: value})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop("blk.1.ffn_up.weight"), "lacks the tensor blk.1.ffn_up.weight"),
        (drop("output_norm.weight"), "lacks the tensor output_norm.weight"),
        (put("blk.0.attn_q.bias", (types.F32, (256,), bytes(1024))), r"'blk\.0\.attn_q\.bias', which llama models do not have"),
        (put("blk.0.attn_output.bias", (types.F32, (256,), bytes(1024))), "lacks the tensor blk.0.attn_q.bias"),
        (put("v.patch_embd.weight", (types.F32, (4,), bytes(16))), "which llama models do not have"),
        (put("output_norm.weight", (types.F32, (128,), bytes(512))), r"shape \[128\], but its metadata mean \[256\]"),
        (put("blk.0.ffn_up.weight", (types.F32, (256, 512), bytes(4 * 256 * 512))), "its metadata mean"),
        (put("blk.0.ffn_down.weight", (IQ1_S, (256, 512), bytes(256 * 100))), "blk.0.ffn_down.weight .*IQ1_S"),
        (put("output_norm.weight", (types.Q8_0, (256,), bytes(272))), "output_norm.weight .*Q8_0"),
        (say("llama.block_count", 4), r"lacks the tensor blk\.3"),
        (say("llama.block_count", 2), r"'blk\.2\..*', which llama models do not have"),
    ],
)
def test_tensors_that_do_not_make_the_model_are_named(mixed: Path, tmp_path: Path, edit: Edit, said: str) -> None:
    metadata, tensors = read_metadata(mixed), read_tensors(mixed)
    edit(metadata, tensors)
    with pytest.raises(ModelError, match=said):
        GgufWeights.open(Gguf.open(Written(metadata, tensors).save(tmp_path / "m.gguf")))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twins(tmp_path_factory.mktemp("mixture"), types.Q8_0, "mixtral", vocab_size=320)[0]


GATES = "blk.1.ffn_gate_exps.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop(GATES), f"lacks the tensor {GATES}"),
        (drop("blk.1.ffn_gate_inp.weight"), "lacks the tensor blk.1.ffn_gate_inp.weight"),
        (say("llama.expert_count", 3), r"holds 4 experts, but its metadata mean 3|shape \[4, 256\]"),
        (put(GATES, (types.F32, (3, 512, 256), bytes(4 * 3 * 512 * 256))), f"{GATES} .* holds no expert 3"),
        (put(GATES, (types.F32, (5, 512, 256), bytes(4 * 5 * 512 * 256))), f"{GATES} .* holds 5 experts"),
        (put(GATES, (types.F32, (4, 256, 256), bytes(4 * 4 * 256 * 256))), r"shape \[256, 256\], but its metadata mean \[512"),
        (put(GATES, (types.F32, (2048, 256), bytes(4 * 2048 * 256))), f"{GATES} .* holds no expert"),
        (put(GATES, (IQ1_S, (4, 512, 256), bytes(4 * 512 * 50))), f"{GATES} .*IQ1_S"),
        (put("blk.0.ffn_up.weight", (types.F32, (512, 256), bytes(4 * 512 * 256))), "which llama models do not have"),
        (put("blk.0.ffn_up.0.weight", (types.F32, (512, 256), bytes(4 * 512 * 256))), "which llama models do not have"),
    ],
)
def test_experts_that_do_not_make_the_model_are_named(mixture: Path, tmp_path: Path, edit: Edit, said: str) -> None:
    metadata, tensors = read_metadata(mixture), read_tensors(mixture)
    edit(metadata, tensors)
    with pytest.raises(ModelError, match=said):
        GgufWeights.open(Gguf.open(Written(metadata, tensors).save(tmp_path / "m.gguf")))


def test_missing_expert_of_a_file_with_single_ones_is_named(tmp_path: Path) -> None:
    file, _ = make_twins(tmp_path, types.Q8_0, "mixtral", vocab_size=320, single_experts=True)
    metadata, tensors = read_metadata(file), read_tensors(file)
    del tensors["blk.1.ffn_down.2.weight"]
    with pytest.raises(ModelError, match=r"lacks the tensor blk\.1\.ffn_down\.2\.weight"):
        GgufWeights.open(Gguf.open(Written(metadata, tensors).save(tmp_path / "m.gguf")))


def test_millions_of_promised_experts_cost_nothing(mixture: Path, tmp_path: Path) -> None:
    metadata = read_metadata(mixture) | {"llama.expert_count": 4096, "llama.block_count": 1024}
    file = Written(metadata, read_tensors(mixture)).save(tmp_path / "m.gguf")
    started = time.perf_counter()
    with pytest.raises(ModelError):
        GgufWeights.open(Gguf.open(file))
    assert time.perf_counter() - started < 1


def test_an_expert_is_read_without_the_others(mixture: Path) -> None:
    """What a conversion holds of the file at a time: reading them all for each would take hours for 128 experts."""
    weights = GgufWeights.open(Gguf.open(mixture))
    names = weights.expert_tensors(0, 2)
    tracemalloc.start()
    weights.linear(next(iter(names.values())))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    info = weights.gguf.info("blk.0.ffn_gate_exps.weight")
    assert info is not None
    assert weights.gguf.rows(info.name, 512, 512).nbytes == info.n_bytes // 4
    assert peak < 3 * 512 * 256 * 4


def test_file_and_directory_are_models(mixed: Path, tmp_path: Path) -> None:
    assert resolve(str(mixed)) == ModelSource("mixed-Q4_K_M", mixed.parent, mixed)
    assert resolve(str(mixed.parent)) == ModelSource(mixed.parent.name, mixed.parent, mixed)
    make_checkpoint(tmp_path / "both")
    (tmp_path / "both" / "m.gguf").write_bytes(mixed.read_bytes())
    assert resolve(str(tmp_path / "both")).gguf is None  # a Hugging Face checkpoint that brings a GGUF file along


def test_split_file_is_a_model_by_any_part(mixed: Path, tmp_path: Path) -> None:
    metadata, tensors = read_metadata(mixed), read_tensors(mixed)
    names = list(tensors)
    for number, part in enumerate((names[:5], names[5:])):
        split = {
            "split.no": Typed("u16", number),
            "split.count": Typed("u16", 2),
            "split.tensors.count": Typed("i32", len(names)),
        }
        values = (metadata if number == 0 else {}) | split
        Written(values, {name: tensors[name] for name in part}).save(tmp_path / f"s-{number + 1:05}-of-00002.gguf")
    model = Model(resolve(str(tmp_path / "s-00002-of-00002.gguf")))
    assert model.source.name == "s"
    assert model.checkpoint.quantised


def test_model_talks_and_tells_what_becomes_of_its_weights(mixed: Path) -> None:
    model = Model(resolve(str(mixed)))
    assert model.encode_chat([Message("user", "hi")]) == model.tokenizer.encode(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.notices(Quant.AUTO) == ()
    assert "rounded again to int4" in model.notices(Quant.INT4)[0]
    assert model.weight_format(Quant.AUTO) == WeightFormat(4, 32)
    assert model.weight_format(Quant.INT8, 64) == WeightFormat(8, 64)
    assert model.weights(Quant.AUTO).quantised
    assert not model.weights(Quant.INT8).quantised


def test_gguf_without_a_template_points_to_raw(mixed: Path, tmp_path: Path) -> None:
    metadata = read_metadata(mixed)
    del metadata["tokenizer.chat_template"]
    model = Model(resolve(str(Written(metadata, read_tensors(mixed)).save(tmp_path / "m.gguf"))))
    with pytest.raises(UserError) as refused:
        _ = model.chat
    assert refused.value.hint == "use --raw"


def test_floats_are_rounded_as_those_of_a_checkpoint_are(tmp_path: Path) -> None:
    file, _ = make_twins(tmp_path, types.F16, vocab_size=320)
    model = Model(resolve(str(file)))
    assert model.weight_format(Quant.AUTO, 64) == WeightFormat(4, 64)
    assert model.notices(Quant.INT4) == ()
    assert not model.checkpoint.quantised
