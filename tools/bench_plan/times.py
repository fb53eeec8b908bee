"""Part `times`: how long measuring and planning take, with eight daemons."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mdi.errors import ClusterError
from mdi.model.quantise import Quant
from tools.bench_plan.bench import PlanBench
from tools.bench_plan.figures import verdict
from tools.shapes import named_shape
from tools.testbed.bed import Testbed

BED = "eight"
PROFILE_S, LINKS_S, PLAN_S = 10.0, 15.0, 1.0  # the targets
CACHED_S = 0.5  # beside what an empty command takes, which is mostly imports
OBJECTIVES = ("latency", "throughput", "mixed")


def times(bench: PlanBench) -> None:
    """Whole commands by the clock, as a person waits for them; a plan also without its command."""
    model = bench.model(bench.args.shape, named_shape(bench.args.shape))
    packs = bench.packed(model, Quant.INT4)
    rows = []
    with bench.bed(BED, packs) as bed:
        empty_s = min(_seconds(bed, ("--version",)) for _ in range(3))
        for name, subject in (("demo", "demo"), (bench.args.shape, str(model))):
            first_s, again_s = _profiled(bench, bed, subject)
            rows.append(
                (
                    f"profile of a node with {name}, first time",
                    f"{first_s:.1f} s",
                    f"{PROFILE_S:g} s",
                    verdict(first_s <= PROFILE_S),
                )
            )
            kept = again_s - empty_s <= CACHED_S
            rows.append(("the same again", f"{again_s:.1f} s", f"{empty_s + CACHED_S:.1f} s, cached", verdict(kept)))
        links_s = statistics.median(_linked(bed) for _ in range(bench.args.rounds))
        n = len(bed.spec.nodes)
        rows.append(
            (
                f"links of {n} nodes, all {n * (n - 1) // 2} pairs",
                f"{links_s:.1f} s",
                f"{LINKS_S:g} s",
                verdict(links_s <= LINKS_S),
            )
        )
        rows += _planned(bench, bed, "demo")
        rows += _planned(bench, bed, str(model))
    bench.show(
        "measuring and planning; whole commands, imports included, unless it says solving", ("what", "took", "target", ""), rows
    )
    bench.found("times", {row[0]: row[1] for row in rows})


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
    peers = [f"--peer={bed.spec.address(node)}:{bed.home(node.name).running().port}" for node in bed.spec.nodes[1:]]  # type: ignore[union-attr]
    return _seconds(bed, ("links", "--refresh", "--json", "--no-discovery", *peers))


def _planned(bench: PlanBench, bed: Testbed, model: str) -> list[tuple[str, str, str, str]]:
    """With everything measured: the solvers alone on the real problem, and all that comes before them once more."""
    with bench.starter(bed, Path(model), Quant.AUTO) as starter:
        starter.plan()  # measures what is not known
        found = [starter.plan(*OBJECTIVES) for _ in range(bench.args.rounds)]
    name = Path(model).name
    drawn_s = statistics.median(each["drawn_s"] for each in found)
    slowest = {objective: statistics.median(each["solve_s"][objective] for each in found) for objective in OBJECTIVES}
    bench.found(f"solving for {name}", json.loads(json.dumps(slowest)))
    objective, solved_s = max(slowest.items(), key=lambda item: item[1])
    total_s = drawn_s + solved_s
    n = len(bed.spec.nodes)
    return [
        (
            f"solving for {name} on {n} nodes, {objective} (the slowest of {len(slowest)})",
            f"{solved_s:.2f} s",
            f"{PLAN_S:g} s",
            verdict(solved_s <= PLAN_S),
        ),
        (
            f"the same with finding the nodes and asking for what they know",
            f"{total_s:.2f} s",
            f"{PLAN_S:g} s",
            verdict(total_s <= PLAN_S),
        ),
    ]
