"""Part `slowdown`: a node is slowed to a third while it answers. How soon another plan runs, and how good that is."""

from __future__ import annotations

import statistics
import time

from mdi.model.quantise import Quant
from tools.bench_plan.alternatives import BED
from tools.bench_plan.bench import WARM_UP_TOKENS, PlanBench
from tools.bench_plan.figures import verdict
from tools.bench_plan.layouts import Layout
from tools.bench_plan.starter import RingStarter
from tools.shapes import named_shape

SLOWED = "laptop"
REPLAN_S = 60.0  # the targets
OF_THE_BEST = 0.9
ANSWER_TOKENS = 16  # short, since a plan changes between answers


def slowdown(bench: PlanBench) -> None:
    """The starter answers one question after another, and is told nothing of what happens to the node."""
    model = bench.model(bench.args.shape, named_shape(bench.args.shape))
    packs = bench.packed(model, Quant.INT4)
    with bench.bed(BED, packs) as bed, bench.starter(bed, model, Quant.INT4) as starter:
        first: Layout = starter.plan("latency", refresh=True)["plans"]["latency"]
        starter.open(first, bench.args.prompt, ANSWER_TOKENS)
        before = _rate(bench, starter)
        bed.set_cpu(SLOWED, (bed.spec.node(SLOWED).cpu or 1.0) / 3)
        took_s = _until_another(bench, starter, first)
        after, second = _rate(bench, starter), starter.layout
        best: Layout = starter.plan("latency", refresh=True)["plans"]["latency"]
        starter.open(best, bench.args.prompt, ANSWER_TOKENS)
        most = _rate(bench, starter)
    rows = [
        ("before", first.text, f"{before:.2f}"),
        (f"{SLOWED} at a third, {'new plan' if took_s else 'same plan'}", second.text, f"{after:.2f}"),
        (f"{SLOWED} at a third, a plan made anew", best.text, f"{most:.2f}"),
    ]
    bench.show(f"{bench.args.shape}, decode of one conversation", ("", "blocks", "tok/s"), rows)
    bench.found("slowdown", {"replanned_s": took_s, "before": before, "after": after, "best": most})
    if took_s is None:
        bench.say(f"The starter kept its plan for {REPLAN_S:g} s: it does not plan again while it runs. {verdict(False)}")
        return
    bench.say(f"another plan after {took_s:.0f} s; target {REPLAN_S:g} s: {verdict(took_s <= REPLAN_S)}")
    bench.say(f"{after / most:.0%} of the best plan's speed; target {OF_THE_BEST:.0%}: {verdict(after >= OF_THE_BEST * most)}")


def _until_another(bench: PlanBench, starter: RingStarter, first: Layout) -> float | None:
    """Seconds of answering until the ring is another one; None when it is still the same after REPLAN_S."""
    started_s = time.monotonic()
    while (elapsed_s := time.monotonic() - started_s) < REPLAN_S:
        starter.measure(bench.args.prompt, ANSWER_TOKENS)
        if starter.layout != first:
            return elapsed_s
    return None


def _rate(bench: PlanBench, starter: RingStarter) -> float:
    starter.measure(bench.args.prompt, WARM_UP_TOKENS)
    found = [starter.measure(bench.args.prompt, ANSWER_TOKENS) for _ in range(bench.args.rounds)]
    return statistics.median(figures.decode_tokens_per_s for figures in found)
