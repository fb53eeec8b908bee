"""Part `exhaustive`: every split of a small instance is measured, and ours compared with the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.bench.rates import turned
from tools.bench_plan.bench import WARM_UP_TOKENS, PlanBench
from tools.bench_plan.figures import Entrant, verdict
from tools.bench_plan.layouts import Layout, all_layouts
from tools.bench_plan.predictions import MODELS, QUANT
from tools.bench_plan.starter import RingStarter

BED = "three"
MODEL = "1b-8"
WITHIN = 0.03  # the target
# The fastest of many noisy measurements is the luckiest: so the best ones of the first look are measured again, in turn with ours.
FINALISTS = 5
FIRST_LOOK_TOKENS = 12
PROMPT_TOKENS = 8


def exhaustive(bench: PlanBench) -> None:
    """All splits within the memory that the nodes offer, in all orders of the workers."""
    model = bench.model(f"plan-{MODEL}", MODELS[MODEL])
    packs = bench.packed_together("plan-packs", [model], QUANT)
    with bench.bed(BED, packs) as bed, bench.starter(bed, model, QUANT) as starter:
        found = starter.plan("latency", refresh=True)
        ours: Layout = found["plans"]["latency"]
        layouts = list(all_layouts(found["n_blocks"], found["limits"]))
        looks = {layout: _entered(starter, layout, FIRST_LOOK_TOKENS, Entrant("", layout.text)) for layout in layouts}
        ranked = sorted(layouts, key=lambda layout: -looks[layout].median("decode_tokens_per_s"))
        final = finalists(ranked, ours)
        entrants = {layout: Entrant("ours" if layout == ours else "", layout.text) for layout in final}
        for i in range(bench.args.rounds):
            for layout in turned(final, i):
                _entered(starter, layout, bench.args.new, entrants[layout])
    _report(bench, entrants, looks, ranked, ours)


def finalists(ranked: Sequence[Layout], ours: Layout) -> list[Layout]:
    """Ours, and the FINALISTS fastest others of the first look."""
    return [ours, *[layout for layout in ranked if layout != ours][:FINALISTS]]


def _entered(starter: RingStarter, layout: Layout, new_tokens: int, entrant: Entrant) -> Entrant:
    """The same with one more round."""
    entrant.predicted, _ = starter.open(layout, PROMPT_TOKENS, new_tokens)
    starter.measure(PROMPT_TOKENS, WARM_UP_TOKENS)
    entrant.rounds.append(starter.measure(PROMPT_TOKENS, new_tokens))
    starter.close()
    return entrant


def _report(
    bench: PlanBench,
    entrants: Mapping[Layout, Entrant],
    looks: Mapping[Layout, Entrant],
    ranked: Sequence[Layout],
    ours: Layout,
) -> None:
    what = "decode_tokens_per_s"
    rows = [
        (
            each.split,
            each.name,
            f"{looks[layout].median(what):.2f}",
            f"{each.median(what):.2f}",
            f"{1000 / each.median(what):.1f} ms",
            f"{getattr(each.predicted, what):.2f}",
            f"{each.ratio(entrants[ours], what):.3f}",
        )
        for layout, each in entrants.items()
    ]
    headings = ("blocks", "", "first look", "tok/s", "a token", "predicted", "to ours")
    bench.show(f"{MODEL}: the best of {len(ranked)} splits of {ours.n_blocks} blocks, measured again", headings, rows)
    slowest = looks[ranked[-1]]
    bench.say(
        f"ours was number {ranked.index(ours) + 1} of the first look; the slowest, {slowest.split}: {slowest.median(what):.2f} tok/s"
    )
    best = max(each.ratio(entrants[ours], what) for each in entrants.values())
    bench.found("exhaustive: ours to the best", 1 / best)
    bench.found(
        "exhaustive: first look", {each.split: [each.median(what), getattr(each.predicted, what)] for each in looks.values()}
    )
    bench.say(f"ours reaches {1 / best:.1%} of the best; target {1 - WITHIN:.0%}: {verdict(1 / best >= 1 - WITHIN)}")
