"""Parts `single`, `pair` and `house`: one process beside llama.cpp, and models spread over daemons."""

from __future__ import annotations

from contextlib import ExitStack

from mdi.model.checkpoint import read_config
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from tools.bench.bench import Bench
from tools.bench.processes import MdiProcess, node
from tools.bench.rates import Contender, compete, halves, llama
from tools.llama_cpp import LlamaCpp, available_cores, peak_rss_bytes, reset_peak_rss, rpc_workers
from tools.shapes import named_shape

PORTS = 52760  # and the next ones: away from a node that runs on this machine
HOUSE = ("desk", "kitchen", "attic")


def single(bench: Bench, threads: int) -> None:
    """(a): one process, as many threads as llama.cpp."""
    args = bench.args
    cores = ",".join(str(core) for core in available_cores()[:threads])
    with ExitStack() as stack:
        contenders = []
        for block in args.blocks:
            home = bench.home(f"single-{threads}-{block}")
            options = {"threads": threads, "cores": cores, "block": block, "quant": args.quant}
            process = stack.enter_context(MdiProcess(home, bench.model, **options))
            contenders.append(Contender(f"mdi int4, block {block}", process.measure))
        if args.llama:
            engine = stack.enter_context(LlamaCpp(bench.gguf(), threads, context_tokens=args.prompt + args.new + 8))
            contenders.append(Contender("llama.cpp Q4_0", llama(engine)))
        compete(contenders, args.rounds, args.prompt, args.new)
    bench.report(f"one process, {threads} thread(s)", contenders, contenders[-1])


def pair(bench: Bench) -> None:
    """(b): two nodes of one thread each, and rivals on the same two cores.

    A ring computes half of each token on either core. So it is compared with a process that would: neighbours on the machine often
    slow one core and not the other, up to half.
    """
    args, (first, second) = bench.args, available_cores()[:2]
    n_blocks = named_shape(args.shape, vocab=args.vocab).blocks
    half = n_blocks // 2
    with ExitStack() as stack:
        a, b = bench.home("a"), bench.home("b")
        stack.enter_context(node(a, PORTS, str(first)))
        pid = stack.enter_context(node(b, PORTS + 1, str(second)))
        idle, peer = peak_rss_bytes(pid), f"127.0.0.1:{PORTS + 1}"
        common = {"threads": 1, "cores": str(first), "block": args.blocks[-1], "quant": args.quant}
        alone = [
            stack.enter_context(MdiProcess(bench.home(f"alone-{core}"), bench.model, **common | {"cores": str(core)}))
            for core in (first, second)
        ]
        over_two = {"split": f"{n_blocks - half},{half}", "peer": [peer], "slots": 2, **common}
        with MdiProcess(a, bench.model, **over_two):
            pass  # measuring the nodes takes memory, once; what a stage takes is asked for here
        reset_peak_rss(pid)
        ring = stack.enter_context(MdiProcess(a, bench.model, **over_two))
        ring.measure(args.prompt, args.new, 2)
        _report_memory(bench, "the second node", pid, half, idle, slots=2)
        workers = stack.enter_context(
            MdiProcess(
                bench.home("third"),
                bench.model,
                split=f"0,{n_blocks - half},{half}",
                peer=[f"127.0.0.1:{PORTS}", peer],
                **common,
            )
        )
        contenders = [
            *(
                Contender(f"mdi, one process on core {core}", each.measure)
                for core, each in zip((first, second), alone, strict=True)
            ),
            Contender("mdi, starter's node + 1 node", ring.measure),
            Contender("mdi, starter + 2 nodes with all blocks", workers.measure),
            Contender("mdi, starter's node + 1 node, 2 conversations", lambda p, n: ring.measure(p, n, 2)),
        ]
        if args.llama and args.rpc:
            servers = stack.enter_context(rpc_workers(2, threads=1))
            rpc = stack.enter_context(LlamaCpp(bench.gguf(), 1, rpc=servers, context_tokens=args.prompt + args.new + 8))
            contenders.append(Contender("llama.cpp RPC, 2 workers", llama(rpc)))
        compete(contenders, args.rounds, args.prompt, args.new)
        base = halves("mdi, one process, half on each core", *contenders[:2])
        bench.report("two nodes, one thread each", [base, *contenders], base)
        _report_prediction(bench, ring, contenders[2])


def house(bench: Bench) -> None:
    """(c): three daemons; the starter belongs to the first, and the planner decides who holds what."""
    args, cores = bench.args, available_cores()
    with ExitStack() as stack:
        homes = [bench.home(name) for name in HOUSE]
        pids = [
            stack.enter_context(node(home, PORTS + i, str(cores[i % len(cores)]), threads=1)) for i, home in enumerate(homes)
        ]
        idle = peak_rss_bytes(pids[-1])
        over_all = {
            "threads": 1,
            "cores": str(cores[0]),
            "block": args.blocks[-1],
            "quant": args.quant,
            "peer": [f"127.0.0.1:{PORTS + i}" for i in range(1, len(HOUSE))],
            "min_nodes": len(HOUSE),
            "objective": "throughput",  # among equal nodes every split is as fast; this one gives each a fair share
        }
        with MdiProcess(homes[0], bench.model, **over_all):
            pass  # as in `pair`
        for pid in pids:
            reset_peak_rss(pid)
        starter = stack.enter_context(MdiProcess(homes[0], bench.model, **over_all))
        contender = Contender("mdi, three nodes", starter.measure)
        compete([contender], args.rounds, args.prompt, args.new)
        bench.report("three nodes, one thread each", [contender], contender)
        _report_prediction(bench, starter, contender)
        stages = starter.facts["plan"]["stages"]
        for stage, pid in zip(stages[1:], (pids[HOUSE.index(stage["name"])] for stage in stages[1:]), strict=True):
            _report_memory(bench, stage["name"], pid, stage["stop"] - stage["start"], idle, slots=1)
        resident = sum(peak_rss_bytes(pid) for pid in pids) + starter.peak_rss_bytes
        bench.tell("peak resident memory of all", f"{resident / 2**30:.2f} GiB", resident)


def _report_prediction(bench: Bench, starter: MdiProcess, measured: Contender) -> None:
    split = ",".join(str(stage["stop"] - stage["start"]) for stage in starter.facts["plan"]["stages"])
    predicted, found = starter.predicted_tokens_per_s, measured.median("decode_tokens_per_s")
    ratio = predicted / found
    bench.tell(f"{measured.name}, blocks {split}: predicted / measured", f"{predicted:.2f} / {found:.2f} = {ratio:.3f}", ratio)


def _report_memory(bench: Bench, name: str, pid: int, n_blocks: int, idle: int, *, slots: int) -> None:
    """Of a worker: what its stage takes at most, beside the weights and the KV that this benchmark writes."""
    config, args = read_config(bench.model), bench.args
    weights = n_blocks * packed_bytes(config, WeightFormat(4, args.blocks[-1]))[0]
    kv = bench.kv_bytes(n_blocks, slots)
    peak = peak_rss_bytes(pid)
    ratio = (peak - idle) / (weights + kv)
    shown = f"({peak >> 20} - {idle >> 20} MiB of an idle node) / ({weights >> 20} + {kv >> 20} MiB) = {ratio:.3f}"
    bench.tell(f"{name}, {n_blocks} blocks: peak resident / (weights + KV)", shown, ratio)
