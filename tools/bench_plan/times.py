"""Part `times`: how long measuring and planning take, with eight daemons."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mdi.errors import ClusterError
from mdi.model.quantise import Quant
from tools.bench_plan.bench import PlanBench
from tools.bench_plan.figures import verdict
from tools.bench_plan.starter import peers_of
from tools.shapes import named_shape
from tools.testbed.bed import Testbed

BED = "eight"
PROFILE_S, LINKS_S, PLAN_S = 10.0, 15.0, 1.0  # the targets
CACHED_S = 1.0  # beside what an empty command takes: importing the engine takes half a second
OBJECTIVES = ("latency", "throughput", "mixed")


def times(bench: PlanBench) -> None:
    """Whole commands by the clock, as a person waits for them; a plan also without its command."""
    model = bench.model(bench.args.shape, named_shape(bench.args.shape))
    packs = bench.packed(model, Quant.INT4)
    rows: list[tuple[str, str, str, str]] = []

    def add(what: str, seconds: float, most_s: float) -> None:
        bench.found(what, seconds)
        rows.append((what, f"{seconds:.2f} s", f"{most_s:.1f} s", verdict(seconds <= most_s)))

    with bench.bed(BED, packs) as bed:
        n = len(bed.spec.nodes)
        empty_s = min(_seconds(bed, ("--version",)) for _ in range(3))
        for name, subject in (("demo", "demo"), (bench.args.shape, str(model))):
            first_s, again_s = _profiled(bench, bed, subject)
            add(f"profile of a node with {name}, the first time", first_s, PROFILE_S)
            add("the same again, cached: a second more than an empty command at most", again_s, empty_s + CACHED_S)
        links_s = statistics.median(_linked(bed) for _ in range(bench.args.rounds))
        add(f"links of {n} nodes, all {n * (n - 1) // 2} pairs", links_s, LINKS_S)
        for name, subject in (("demo", "demo"), (bench.args.shape, str(model))):
            objective, solved_s, drawn_s = _planned(bench, bed, subject)
            add(f"solving for {name} on {n} nodes, {objective} (the slowest of {len(OBJECTIVES)})", solved_s, PLAN_S)
            add("the same with finding the nodes and asking for what they know", drawn_s + solved_s, PLAN_S)
    bench.show("measuring and planning; whole commands, but for the last four", ("what", "took", "target", ""), rows)


def _seconds(bed: Testbed, arguments: Sequence[str], node: str | None = None) -> float:
    """How long `mdi` takes with these arguments. Raises ClusterError when it fails."""
    started_s = time.perf_counter()
    done = bed.run((sys.executable, "-m", "mdi.cli.app", *arguments), node)
    if done.returncode:
        raise ClusterError(f"mdi {' '.join(arguments)} failed: {done.stderr.strip()}")
    return time.perf_counter() - started_s


def _profiled(bench: PlanBench, bed: Testbed, model: str) -> tuple[float, float]:
    """Of a node that was never measured before, and once more: medians over as many nodes as there are rounds."""
    command = ("node", "profile", "--json", "--model", model)
    names = [node.name for node in bed.spec.nodes[-bench.args.rounds :]]
    first = [_seconds(bed, command, name) for name in names]
    again = [_seconds(bed, command, name) for name in names]
    return statistics.median(first), statistics.median(again)


def _linked(bed: Testbed) -> float:
    peers = [f"--peer={peer}" for peer in peers_of(bed)]
    return _seconds(bed, ("links", "--refresh", "--json", "--no-discovery", *peers))


def _planned(bench: PlanBench, bed: Testbed, model: str) -> tuple[str, float, float]:
    """With everything measured: the objective that takes longest, the seconds of its solver on the real problem, and of drawing that."""
    with bench.starter(bed, Path(model), Quant.INT4) as starter:
        starter.plan()  # measures what is not known
        found = [starter.plan(*OBJECTIVES) for _ in range(bench.args.rounds)]
    solve_s = {name: statistics.median(each["solve_s"][name] for each in found) for name in OBJECTIVES}
    slowest = max(solve_s, key=lambda name: solve_s[name])
    return slowest, solve_s[slowest], statistics.median(each["drawn_s"] for each in found)
