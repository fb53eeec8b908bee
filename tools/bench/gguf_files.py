"""Part `gguf`: both engines on the very same file, taken exactly and rounded again, and what the rounding costs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

from mdi.model.quantise import Quant
from mdi.model.source import Model, resolve
from mdi.pipeline.problem import chosen_kv_type
from tools.bench.bench import Bench
from tools.bench.processes import MdiProcess
from tools.bench.rates import Contender, compete, llama
from tools.llama_cpp import LlamaCpp, available_cores
from tools.perplexity import HEADER, Result, measure, spoken

TEXT = (4, 64)  # sequences that the model speaks itself, and the tokens of each


def same_files(bench: Bench) -> None:
    for kind in bench.args.kinds:
        for threads in bench.args.threads:
            same_file(bench, kind, threads)
        if bench.args.quality:
            quality(bench, kind)


def same_file(bench: Bench, kind: str, threads: int) -> None:
    """Decode and prefill of every way to take the file, beside llama.cpp."""
    args, path = bench.args, bench.gguf(kind)
    cores = ",".join(map(str, available_cores()[:threads]))
    ways: list[tuple[str, dict[str, object]]] = [("mdi, exactly", {"quant": "auto"})]
    ways += [(f"mdi, int4 again, block {block}", {"quant": args.quant, "block": block}) for block in args.blocks]
    with ExitStack() as stack:
        contenders = []
        for name, options in ways:
            home = bench.home(f"gguf-{kind}-{threads}-{len(contenders)}")
            process = stack.enter_context(MdiProcess(home, path, threads=threads, cores=cores, **options))
            contenders.append(Contender(name, process.measure))
        engine = stack.enter_context(LlamaCpp(path, threads, context_tokens=args.prompt + args.new + 8))
        contenders.append(Contender(f"llama.cpp {kind}", llama(engine)))
        compete(contenders, args.rounds, args.prompt, args.new)
    bench.report(f"the same {kind} file, {threads} thread(s)", contenders, contenders[-1])


def quality(bench: Bench, kind: str) -> None:
    """Perplexity, and KL to the file's own values computed in fp32, of every way to take it, with KV as MDI keeps it then."""
    args = bench.args
    model = Model(resolve(str(bench.gguf(kind))))
    text = spoken(model, *TEXT, len(available_cores()))
    ways = [(Quant.AUTO, args.blocks[0]), *((args.quant, block) for block in args.blocks)]
    choices = [(quant, block, chosen_kv_type(quant, None)) for quant, block in ways]
    bench.say(f"{kind}: {text.n_scored} tokens of {text.origin}\n{HEADER}")
    shown: list[Result] = []

    def show(result: Result) -> None:
        shown.append(result)
        bench.say(result.line(shown[0]))

    bench.results[f"quality of {kind}"] = [
        asdict(result) for result in measure(model, text, choices, len(available_cores()), show)
    ]
