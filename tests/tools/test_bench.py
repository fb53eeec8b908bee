"""The benchmark's parts run on a tiny shape with both real engines, and count what they say they count."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi.engine.huge_pages import Region, resident
from mdi.errors import UserError
from mdi.model.checkpoint import Checkpoint
from mdi.model.gguf.files import Gguf
from mdi.model.packed import prepare
from mdi.model.quantise import WeightFormat
from tools.bench import load
from tools.bench.__main__ import main
from tools.bench.bandwidth import gguf_bytes, weight_bytes
from tools.bench.bench import Bench
from tools.bench.processes import Reader
from tools.bench.rates import Contender, Rates, compete, turned
from tools.make_gguf import make_gguf
from tools.mdi_child import together
from tools.shapes import SHAPES

pytestmark = pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("gguf")), reason="needs the extra `bench`")
TINY_EMBEDDING_Q4_0 = SHAPES["tiny"].vocab * SHAPES["tiny"].hidden // 32 * 18
TINY = ["--shape", "tiny", "--blocks", "32", "--threads", "1", "--prompt", "16", "--new", "100", "--rounds", "2"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets variables for its children."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def run(directory: Path, *arguments: str) -> dict[str, Any]:
    found = directory / "found.json"
    assert main([*TINY, "--directory", str(directory), "--json", str(found), *arguments]) == 0
    results: dict[str, Any] = json.loads(found.read_text())
    return results


def test_engines_take_turns_and_the_ratio_is_that_of_neighbours() -> None:
    order: list[str] = []

    def engine(name: str, rates: list[float]) -> Contender:
        def measure(prompt_tokens: int, new_tokens: int) -> Rates:
            order.append(name)
            return Rates(1.0, rates.pop(0))

        return Contender(name, measure)

    # The machine is a tenth as fast in the second round. Ratios of neighbours do not see that, a ratio of medians would.
    a, b = engine("a", [0, 30.0, 3.0, 60.0]), engine("b", [0, 10.0, 1.0, 30.0])
    compete([a, b], rounds=3, prompt_tokens=1, new_tokens=1)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert a.ratio(b, "decode_tokens_per_s") == 3.0
    assert turned("abc", 4) == ["b", "c", "a"]


def test_tokens_are_counted_only_while_all_answers_run() -> None:
    # The first alone until 2.0 s, both until 4.0 s (3 + 2 tokens after the beginning), then the second alone.
    assert together([[1.0, 2.0, 3.0, 3.5, 4.0], [2.0, 3.0, 4.0, 5.0]]) == pytest.approx(5 / 2)
    assert together([[1.0, 2.0], [3.0, 4.0]]) is None


def test_both_engines_run_the_same_file_and_its_perplexity_is_told(directory: Path) -> None:
    results = run(directory, "--parts", "gguf", "--kinds", "q4_0")
    table = results["the same q4_0 file, 1 thread(s)"]
    assert list(table) == ["mdi, exactly", "mdi, int4 again, block 32", "llama.cpp q4_0"]
    assert all(row["decode_tokens_per_s"] > 1 for row in table.values())
    assert table["llama.cpp q4_0"]["decode_ratio"] == 1
    plain, exact, again = results["quality of q4_0"]
    assert (plain["name"], plain["kl"]) == ("none", 0)
    assert 0 < exact["kl"] < again["kl"] < 0.01


def test_several_sequences_decode_at_once_in_both(directory: Path) -> None:
    results = run(directory, "--parts", "batch", "--sequences", "2", "4")
    for count in (2, 4):
        ours, theirs = results[f"{count} sequences at once, 1 thread(s)"].values()
        assert min(ours["decode_tokens_per_s"], theirs["decode_tokens_per_s"]) > 1


def test_decoding_reads_less_than_the_memory_gives(directory: Path) -> None:
    results = run(directory, "--parts", "bandwidth")
    shares = [value for name, value in results.items() if name.endswith("memory read")]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)


def test_what_one_token_reads_is_counted_as_the_files_have_it(directory: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(shape="tiny", vocab=None, directory=directory, dtype="bf16")
    bench = Bench(args, tmp_path)
    packed = prepare(Checkpoint.open(bench.model), WeightFormat(4, 32), tmp_path / "packs")
    in_packs = sum(ref.n_bytes for ref in (*packed.blocks, packed.head))
    headers = 4096 * (len(packed.blocks) + 1)
    assert in_packs - headers < weight_bytes(bench, 32) < in_packs
    assert (
        0 < bench.gguf().stat().st_size - gguf_bytes(bench) - TINY_EMBEDDING_Q4_0 < 1 << 16
    )  # its header, with the vocabulary


def test_starts_and_conversions_are_timed_with_their_memory(directory: Path) -> None:
    results = run(directory, "--parts", "load", "convert")
    for engine in ("mdi", "llama.cpp"):
        assert 0 < results[f"{engine}: start to ready, files on the disk"] < 60
        assert results[f"{engine}: peak resident / (int4 weights + KV)"] > 1
    for quant in ("int4", "int4-plain"):
        assert 0 < results[f"conversion to {quant}"] < 60
        assert 10 << 20 < results[f"conversion to {quant}: peak resident"] < 1 << 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what lies in its page cache")
def test_a_forgotten_file_is_only_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    libc = ctypes.CDLL(None, use_errno=True)
    mapped = np.memmap(file, np.uint8, "r")  # untouched: it only lends an address to ask for
    region = Region(mapped.ctypes.data, mapped.ctypes.data + mapped.nbytes)
    assert resident(libc, region).all()
    load.forget(tmp_path)
    assert not resident(libc, region).any()


def test_the_reader_reads_at_the_speed_of_a_memory_not_of_a_disk() -> None:
    with Reader(1, str(min(os.sched_getaffinity(0)))) as reader:
        assert 1e8 < reader.measure() < 1e12


def test_a_mixture_of_types_is_llama_cpps_own(tmp_path: Path) -> None:
    shape = replace(SHAPES["tiny"], hidden=256, ffn=256, heads=8, kv_heads=8, head_dim=32, blocks=8, tied=True)
    made = make_gguf(shape, tmp_path / "mixed.gguf", quantisation="q4_k_m")
    types = {name: tensor.type.name for name, tensor in Gguf.open(made.path).tensors.items()}
    assert [types[f"blk.{block}.ffn_down.weight"] for block in range(8)] == ["Q6_K"] + 2 * ["Q4_K", "Q4_K", "Q6_K"] + ["Q6_K"]
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert types["token_embd.weight"] == "Q6_K"  # the head too
    assert list(tmp_path.iterdir()) == [made.path]


def test_a_shape_without_whole_superblocks_has_no_mixture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="blocks of 256"):
        make_gguf(SHAPES["tiny"], tmp_path / "tiny.gguf", quantisation="q4_k_m")
