"""Part `bandwidth`: the bytes of weights that decoding reads in a second, beside what the memory gives to as many threads."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from mdi.model.gguf.files import Gguf
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from mdi.model.source import Model, resolve
from tools.bench.bench import Bench
from tools.bench.processes import MdiProcess, Reader
from tools.bench.rates import turned
from tools.llama_cpp import LlamaCpp, available_cores

PASSES = 5  # over the reader's buffer in one turn: some 0.1 s


def read_share(bench: Bench, threads: int) -> None:
    """MDI, llama.cpp and the plain reader take turns; a share is the median of the rounds' shares."""
    args = bench.args
    cores = ",".join(map(str, available_cores()[:threads]))
    block = args.blocks[-1]
    with ExitStack() as stack:
        process = stack.enter_context(
            MdiProcess(
                bench.home(f"bandwidth-{threads}"), bench.model, threads=threads, cores=cores, quant=args.quant, block=block
            )
        )
        engine = stack.enter_context(LlamaCpp(bench.gguf(), threads, context_tokens=args.prompt + args.new + 8))
        reader = stack.enter_context(Reader(threads, cores))
        mdi_bytes, llama_bytes = weight_bytes(bench, block), gguf_bytes(bench)
        turns = {
            "mdi": lambda: mdi_bytes * process.measure(args.prompt, args.new).decode_tokens_per_s,
            "llama.cpp": lambda: llama_bytes * engine.measure(args.prompt, args.new).decode_tokens_per_s,
            "memory": lambda: statistics.median(reader.measure() for _ in range(PASSES)),
        }
        process.measure(args.prompt, 4)
        engine.measure(args.prompt, 4)
        rounds = [{name: turns[name]() for name in turned(list(turns), i)} for i in range(args.rounds)]
    for name, n_bytes in (("mdi", mdi_bytes), ("llama.cpp", llama_bytes)):
        share = statistics.median(each[name] / each["memory"] for each in rounds)
        rate, memory = (statistics.median(each[key] for each in rounds) / 1e9 for key in (name, "memory"))
        shown = f"{n_bytes / 1e6:.0f} MB per token, {rate:.1f} of {memory:.1f} GB/s = {share:.3f}"
        bench.tell(f"{name}, {threads} thread(s): weights read in decoding / memory read", shown, share)


def weight_bytes(bench: Bench, block: int) -> int:
    """What the packs hold of everything that one token is multiplied with: all blocks and the head, not the embedding."""
    config = Model(resolve(str(bench.model))).config
    each, head = packed_bytes(config, WeightFormat(4, block))
    return config.n_blocks * each + head


def gguf_bytes(bench: Bench) -> int:
    """The same of the GGUF file: all its tensors, without the embedding where the head is another one."""
    tensors = Gguf.open(bench.gguf()).tensors
    embedding = tensors["token_embd.weight"].n_bytes if "output.weight" in tensors else 0
    return sum(tensor.n_bytes for tensor in tensors.values()) - embedding
