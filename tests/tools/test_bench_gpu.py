from __future__ import annotations

import json

import pytest
import torch

from mdi.model.quantise import WeightFormat
from tools.bench_gpu import QUANTS, main
from tools.shapes import SHAPES

TINY = SHAPES["tiny"]
LINEAR_SHAPES = [shape for name, shape in TINY.matrices() if len(shape) == 2 and "embed" not in name]
NORM_BYTES = 4 * TINY.hidden * (2 * TINY.blocks + 1)


def test_a_run_counts_every_weight_once_and_says_what_share_of_the_bandwidth_that_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(
        ["--device", "torch-cpu", "--shape", "tiny", "--ctx", "64", "--position", "20", "--chunk", "16", "--block", "32"]
    )
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["device"], found["accelerator"], found["torch"]) == ("torch-cpu", None, str(torch.__version__))
    assert [each["weights"] for each in found["decode"]] == ["float32", "int8", "int4"]
    for quant, each in zip(QUANTS, found["decode"], strict=True):
        fmt = WeightFormat.of(quant, 32)
        assert each["bytes_per_token"] == NORM_BYTES + sum(fmt.linear_bytes(*shape) for shape in LINEAR_SHAPES)
        assert each["kv_bytes_per_token"] == 21 * 4 * 2 * TINY.kv_heads * TINY.head_dim * TINY.blocks
        rate = each["bytes_per_token"] * each["tokens_per_s"]
        assert each["share"] == pytest.approx(rate / each["copy_bytes_per_s"])
        assert 0 < each["share"] < 1
        assert each["prefill_tokens_per_s"] > each["tokens_per_s"]


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_without_a_gpu_it_refuses_with_a_sentence(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", device]) == 2
    refused = capsys.readouterr()
    assert "GPU here" in refused.err
    assert refused.out == ""
