"""Which plan the options ask for, on real nodes and on paper alike."""

from __future__ import annotations

from mdi.pipeline.api import StarterOptions
from mdi.plan.costs import Problem
from mdi.plan.plan import Plan
from mdi.plan.solve import solve
from mdi.plan.wishes import starter_min_blocks


def best_plan(problem: Problem, options: StarterOptions) -> Plan:
    """The best one by `options`, but for `split`. Raises as `solve` does."""
    pins = options.wishes.pins
    return solve(
        problem,
        options.objective,
        min_nodes=options.min_nodes,
        starter_min_blocks=starter_min_blocks(problem, pins),
        pins=pins,
        mixed_share=options.mixed_share,
    )
