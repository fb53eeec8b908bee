"""Part `batch`: several sequences decoding at once in one process, beside llama.cpp's batched decode."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tools.bench.bench import Bench
from tools.bench.processes import MdiProcess
from tools.bench.rates import Contender, compete, llama
from tools.llama_cpp import LlamaCpp, available_cores


def batched(bench: Bench, threads: int) -> None:
    """All numbers of sequences in turn, in the same two processes, which have room for the most of them."""
    args, most = bench.args, max(bench.args.sequences)
    context_tokens = args.prompt + args.new + 8
    cores = ",".join(map(str, available_cores()[:threads]))
    with ExitStack() as stack:
        options = {"quant": args.quant, "block": args.blocks[-1], "slots": most, "ctx": context_tokens}
        home = bench.home(f"batch-{threads}")
        process = stack.enter_context(MdiProcess(home, bench.model, threads=threads, cores=cores, **options))
        engine = stack.enter_context(LlamaCpp(bench.gguf(), threads, context_tokens=context_tokens, sequences=most))
        for count in args.sequences:
            contenders = [
                Contender(f"mdi int4, block {args.blocks[-1]}", partial(process.measure_together, conversations=count)),
                Contender("llama.cpp Q4_0", llama(engine, count)),
            ]
            compete(contenders, args.rounds, args.prompt, args.new)
            bench.report(f"{count} sequences at once, {threads} thread(s)", contenders, contenders[-1])
