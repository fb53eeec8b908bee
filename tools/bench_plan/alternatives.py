"""Part `alternatives`: our plan and every other rule's, all of them measured on one cluster of unlike devices."""

from __future__ import annotations

from mdi.errors import ClusterError
from mdi.model.quantise import Quant
from tools.bench.rates import turned
from tools.bench_plan.bench import WARM_UP_TOKENS, PlanBench
from tools.bench_plan.figures import Entrant, verdict
from tools.bench_plan.layouts import Layout
from tools.bench_plan.starter import RingStarter
from tools.shapes import named_shape

BED = "house"
CONVERSATIONS = 4
LATENCY, THROUGHPUT = "ours, latency", "ours, throughput"
BELOW_UNIFORM = 0.37  # the target: how much less time than the uniform split our plan takes for a token


def alternatives(bench: PlanBench) -> None:
    """Rings are opened one at a time, since the devices' memory holds no two of them; each round opens all, in an order that turns."""
    args = bench.args
    model = bench.model(args.shape, named_shape(args.shape))
    packs = bench.packed(model, Quant.INT4)
    with bench.bed(BED, packs) as bed, bench.starter(bed, model, Quant.INT4, slots=CONVERSATIONS) as starter:
        found = starter.plan("latency", "throughput", refresh=True)
        layouts = _distinct(found)
        for name, layout in found["alternatives"].items():
            if layout is None:
                bench.say(f"{name}: does not fit the memory")
        entrants = {name: Entrant(name, layout.text) for name, layout in layouts.items()}
        for i in range(args.rounds):
            for name in turned(list(layouts), i):
                _measure(bench, starter, layouts[name], entrants[name])
    _report(bench, "decode of one conversation", "decode_tokens_per_s", list(entrants.values()), LATENCY)
    _report(bench, f"{CONVERSATIONS} conversations at once", "together_tokens_per_s", list(entrants.values()), THROUGHPUT)


def _distinct(found: dict[str, dict[str, Layout | None]]) -> dict[str, Layout]:
    """Plans by name, ours first. The same layout under two of our names is measured for each: none is missing then."""
    ours = {LATENCY: found["plans"]["latency"], THROUGHPUT: found["plans"]["throughput"]}
    return {name: layout for name, layout in {**ours, **found["alternatives"]}.items() if layout is not None}


def _measure(bench: PlanBench, starter: RingStarter, layout: Layout, entrant: Entrant) -> None:
    args = bench.args
    entrant.predicted, _ = starter.open(layout, args.prompt, args.new, CONVERSATIONS)
    starter.measure(args.prompt, WARM_UP_TOKENS)
    alone = starter.measure(args.prompt, args.new)
    together = starter.measure(args.prompt, args.new, CONVERSATIONS)
    if together.together_tokens_per_s is None:
        raise ClusterError(f"answers of {args.new} tokens are over before all have begun", hint="a larger --new")
    entrant.rounds.append(type(alone)(alone.decode_tokens_per_s, alone.ttft_s, together.together_tokens_per_s))
    starter.close()


def _report(bench: PlanBench, title: str, what: str, entrants: list[Entrant], ours_name: str) -> None:
    ours = next(each for each in entrants if each.name == ours_name)
    rows = []
    for each in entrants:
        less = 1 - each.ratio(ours, what)  # of time per token: ours to theirs
        rate, predicted = each.median(what), getattr(each.predicted, what)
        rows.append(
            (
                each.name,
                each.split,
                f"{rate:.2f}",
                f"{predicted:.2f}",
                f"{predicted / rate:.2f}",
                f"{1000 / rate:.0f} ms",
                f"{less:.0%}",
            )
        )
    headings = ("plan", "blocks", "tok/s", "predicted", "ratio", "a token", f"{ours_name} takes less by")
    bench.show(f"{title}, {bench.args.shape} in int4, prompt {bench.args.prompt}", headings, rows)
    others = {each.name: 1 - each.ratio(ours, what) for each in entrants if each.name not in (LATENCY, THROUGHPUT)}
    bench.found(
        title, {each.name: {"measured": each.median(what), "predicted": getattr(each.predicted, what)} for each in entrants}
    )
    bench.found(f"{title}: less time than", others)
    kept = others["uniform"] >= BELOW_UNIFORM
    bench.say(f"{others['uniform']:.0%} less time than uniform; target {BELOW_UNIFORM:.0%}: {verdict(kept)}")
    bench.say(f"less than every alternative: {verdict(min(others.values()) > 0)}")
