"""Part `predictions`: what was predicted beside what was measured, over testbeds that differ in nodes, speeds, links and memory."""

from __future__ import annotations

from pathlib import Path

from mdi.model.quantise import Quant
from tools.bench_plan.bench import WARM_UP_TOKENS, PlanBench
from tools.bench_plan.figures import Entrant, signed_percent, verdict, within
from tools.bench_plan.starter import RingStarter
from tools.shapes import SHAPES, Shape
from tools.testbed.bed import Testbed

TESTBEDS = ("pair", "house-open", "slow-starter", "wifi", "slow-cable", "tight")
DECODE_ERROR, TTFT_ERROR = 0.15, 0.20  # the targets
QUANT = Quant.INT4_PLAIN  # as fast as int4, and converted in a tenth of the time
# Fewer blocks than the real ones have, so that six testbeds are through in a quarter of an hour; a block and a head are as they are there.
MODELS: dict[str, Shape] = {
    "1b-8": SHAPES["llama-3.2-1b"].cut(blocks=8),
    "tinyllama-8": SHAPES["tinyllama-1.1b"].cut(blocks=8),
    "narrow-16": Shape(32_000, 1024, 3072, 16, 16, 8, 64, 4096),
}


def predictions(bench: PlanBench) -> None:
    """On each testbed one ring of all its nodes for each model, the one that is planned for throughput: each node has a fair share."""
    paths = {name: bench.model(f"plan-{name}", shape) for name, shape in MODELS.items() if name in bench.args.models}
    packs = bench.packed_together("plan-packs", list(paths.values()), QUANT)
    found = []
    for testbed in bench.args.testbeds:
        with bench.bed(testbed, packs) as bed:
            found += [(testbed, name, _measured(bench, bed, path)) for name, path in paths.items()]
    _report(bench, found)


def _measured(bench: PlanBench, bed: Testbed, model: Path) -> Entrant:
    args = bench.args
    with bench.starter(bed, model, QUANT) as starter:
        layout = starter.plan("throughput", min_nodes=len(bed.spec.nodes))["plans"]["throughput"]
        entrant = Entrant(model.name, layout.text)
        entrant.predicted, parts = starter.open(layout, args.prompt, args.new)
        _rounds(bench, starter, entrant)
    errors = (signed_percent(entrant.error(what)) for what in ("decode_tokens_per_s", "ttft_s"))
    bench.say(f"{bed.spec.name}, {model.name} ({layout.text}): decode {next(errors)}, first token {next(errors)}")
    if args.verbose:
        bench.say(_parts(parts))
    return entrant


def _rounds(bench: PlanBench, starter: RingStarter, entrant: Entrant) -> None:
    starter.measure(bench.args.prompt, WARM_UP_TOKENS)
    entrant.rounds += [starter.measure(bench.args.prompt, bench.args.new) for _ in range(bench.args.rounds)]
    starter.close()


def _parts(parts: dict[str, list[float]]) -> str:
    """Of what a prediction consists, in ms."""
    keys = ("stages_s", "hops_s", "prefill_stages_s", "prefill_hops_s")
    return ", ".join(f"{key} {' '.join(f'{1000 * value:.1f}' for value in parts[key])}" for key in keys)


def _report(bench: PlanBench, found: list[tuple[str, str, Entrant]]) -> None:
    rows = []
    for testbed, model, each in found:
        assert each.predicted is not None
        decode, ttft = each.median("decode_tokens_per_s"), each.median("ttft_s")
        rows.append(
            (
                testbed,
                model,
                each.split,
                f"{decode:.2f}",
                f"{each.predicted.decode_tokens_per_s:.2f}",
                signed_percent(each.error("decode_tokens_per_s")),
                f"{1000 * ttft:.0f}",
                f"{1000 * each.predicted.ttft_s:.0f}",
                signed_percent(each.error("ttft_s")),
            )
        )
    headings = ("testbed", "model", "blocks", "tok/s", "predicted", "off by", "first token, ms", "predicted", "off by")
    bench.show(f"decode of one conversation, and the first token of a prompt of {bench.args.prompt}", headings, rows)
    for what, key, most in (("decode", "decode_tokens_per_s", DECODE_ERROR), ("first token", "ttft_s", TTFT_ERROR)):
        errors = [each.error(key) for *_, each in found]
        kept = within(errors, most)
        worst = max(errors, key=abs)
        bench.found(f"{what}: errors", {f"{testbed}, {model}": each.error(key) for testbed, model, each in found})
        bench.say(
            f"{what}: {kept} of {len(errors)} predictions within {most:.0%}, the worst off by {signed_percent(worst)}: "
            f"{verdict(kept == len(errors))}"
        )
