"""A process that converts one checkpoint as a first start does, and says how long it took: the side of `load.py` that computes."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from mdi.engine.observe import BlockObserver
from mdi.model.kv import KvType
from mdi.model.packed import prepare
from mdi.model.quantise import Quant
from mdi.model.source import Model, resolve
from mdi.pipeline.problem import chosen_kv_type
from tools.llama_cpp import available_cores, peak_rss_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("packs", type=Path)
    parser.add_argument("--quant", type=Quant, required=True)
    parser.add_argument("--block", type=int, help="what the model's size suggests when absent")
    args = parser.parse_args()
    model = Model(resolve(args.model))
    start = time.perf_counter()
    weights, fmt = model.weights(args.quant), model.weight_format(args.quant, args.block)
    observer, scales = BlockObserver(model.config, len(available_cores())), chosen_kv_type(args.quant, None) is KvType.INT8
    prepare(weights, fmt, args.packs, observer=observer, weighed=args.quant.weighed, kv_scales=scales)
    seconds = time.perf_counter() - start
    checkpoint_bytes = sum(path.stat().st_size for path in Path(args.model).glob("*.safetensors"))
    facts = {"seconds": seconds, "peak_bytes": peak_rss_bytes(os.getpid()), "checkpoint_bytes": checkpoint_bytes}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
