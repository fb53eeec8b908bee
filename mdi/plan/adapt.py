"""When to plan again while a model is up, and which plan to take then. Pure: times come in as numbers, and the clock too.

The present plan is kept until it is much worse than the best one for the speeds that traffic shows. Of the plans that are nearly as good as
that one, the one is taken for which the fewest blocks have to be loaded: so noise does not flip plans, and a change is soon made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mdi.plan import exact
from mdi.plan.costs import Problem
from mdi.plan.instance import Ring, instance_of
from mdi.plan.live import NO_FACTORS, Factors, overlap, scaled
from mdi.plan.moves import fewest_moves
from mdi.plan.plan import BlockRange, Objective, Plan
from mdi.plan.predict import predict, stages
from mdi.plan.solve import MIXED_SHARE, solve
from mdi.plan.text import counted
from mdi.plan.wishes import Pin, pinned, starter_min_blocks

REPLAN_LOSS = (
    0.25  # a token takes so much longer than it would by the best plan: less is within what predictions are wrong by (15 %)
)
TOLERANCE = 0.03  # what moving fewer blocks may cost: far below REPLAN_LOSS, so that a new plan is not left again for noise
REPLAN_INTERVAL_S = 60.0  # loading takes seconds to minutes, and speeds must have been seen again before they are trusted
TOLD_CHANGE = 1.15  # of a factor: a smaller one is not named as a reason
MOST_REASONS = 2  # in one line


@dataclass(frozen=True, slots=True)
class Goal:
    """What plans are made for, as in `solve`."""

    objective: Objective = Objective.LATENCY
    min_nodes: int = 1
    mixed_share: float = MIXED_SHARE
    pins: tuple[Pin, ...] = ()

    def best(self, problem: Problem) -> Plan:
        """Raises as `solve` does."""
        return solve(
            problem,
            self.objective,
            min_nodes=self.min_nodes,
            starter_min_blocks=starter_min_blocks(problem, self.pins),
            pins=self.pins,
            mixed_share=self.mixed_share,
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A better plan. `present` is the plan that is up, with the times that it has now; `problem` is what both were computed from."""

    reason: str
    problem: Problem
    present: Plan
    plan: Plan

    @property
    def moved(self) -> dict[str, int]:
        """How many blocks each node has to load, by its id; nodes that load none are left out."""
        held = {stage.node_id: stage.blocks for stage in self.present.stages}
        news = {stage.node_id: news_of(stage.blocks, held.get(stage.node_id)) for stage in self.plan.stages}
        return {node_id: n for node_id, n in news.items() if n}

    @property
    def moved_bytes(self) -> int:
        """Of weights that nodes load which do not hold them now."""
        return sum(self.moved.values()) * self.problem.model.block_bytes

    @property
    def sentence(self) -> str:
        """One line for the user."""
        names = {stage.node_id: stage.name for stage in self.plan.stages}
        (first, n), *others = self.moved.items() or [(self.plan.stages[0].node_id, 0)]
        moves = [f"{counted(n, 'block')} move{'s' if n == 1 else ''} to {names[first]}"]
        moves += [f"{n} to {names[node_id]}" for node_id, n in others]
        before, after = (f"{tokens_per_s(plan):.1f}" for plan in (self.present, self.plan))
        return f"{self.reason}; {' and '.join(moves) if n else 'the ring changes'}: {before} → {after} tok/s"


class Adapter:
    """Decides for one session. `base` are always the times that were measured without traffic; `then` is what the plan was made from."""

    def __init__(self, base: Problem, then: Factors = NO_FACTORS) -> None:
        self._base = base
        self._then = then
        self._last_s: float | None = None

    def rests(self, now_s: float) -> bool:
        """Whether the last change is so young that there is none now, whatever the speeds are."""
        return self._last_s is not None and now_s - self._last_s < REPLAN_INTERVAL_S

    def consider(self, now_s: float, base: Problem, plan: Plan, factors: Factors, goal: Goal) -> Change | None:
        """A plan that is to be put in the place of `plan` now; at most one every REPLAN_INTERVAL_S, whatever becomes of it.

        Plans that were made by hand are never changed. Raises as `solve` does.
        """
        if self.rests(now_s) or (found := better(scaled(base, factors), plan, goal)) is None:
            return None
        reason = why_now(self._base, base, self._then, factors)
        self._last_s, self._base, self._then = now_s, base, factors
        problem = scaled(base, factors)
        return Change(reason, problem, as_of(problem, plan), found)


def better(problem: Problem, plan: Plan, goal: Goal) -> Plan | None:
    """None for a plan that was made by hand, and as long as a token takes at most REPLAN_LOSS longer by `plan` than by the best one.

    Else the one that moves the fewest blocks of those that are within TOLERANCE of the best one; exactly so for up to 12 nodes. Among more,
    only the nodes of the present and of the best plan are looked at, if these are not too many; then it is the best one itself.
    """
    if plan.objective is None:
        return None
    best = goal.best(problem)
    if as_of(problem, plan).value_s <= best.value_s * (1 + REPLAN_LOSS):
        return None
    ring = _fewest_moves(problem, plan, best, goal)
    if ring is None:
        return best
    order = [problem.nodes[node].node_id for node in ring.order]
    placed, times = stages(problem, order, ring.counts), predict(problem, order, ring.counts)
    return replace(best, stages=placed, prediction=times)


def _fewest_moves(problem: Problem, plan: Plan, best: Plan, goal: Goal) -> Ring | None:
    chosen = list(range(len(problem.nodes)))
    if len(chosen) > exact.EXACT_NODES:
        ids = {*plan.node_ids, *best.node_ids}
        chosen = [node for node in chosen if problem.nodes[node].node_id in ids]
    place = {problem.nodes[node].node_id: index for index, node in enumerate(chosen)}
    held = {place[stage.node_id]: stage.blocks for stage in plan.stages}
    instance = instance_of(problem, starter_min_blocks(problem, goal.pins), pinned(problem, goal.pins)).only(np.array(chosen))
    ring = fewest_moves(instance, held, best.busy_share, goal.min_nodes, best.value_s * (1 + TOLERANCE))
    return None if ring is None else Ring(tuple(chosen[node] for node in ring.order), ring.counts, ring.step_s)


def as_of(problem: Problem, plan: Plan) -> Plan:
    """The same stages, with the times that they have in `problem`."""
    return replace(plan, prediction=predict(problem, plan.node_ids, plan.counts), bound_s=None)


def news_of(blocks: BlockRange, held: BlockRange | None) -> int:
    """How many of `blocks` are not held."""
    return len(blocks) - (overlap(blocks, held) if held else 0)


def tokens_per_s(plan: Plan) -> float:
    """By what the plan is for: of one conversation, of a full ring, or on average."""
    return (plan.prediction.rows if plan.objective is Objective.THROUGHPUT else 1) / plan.value_s


def why_now(base: Problem, joined: Problem, then: Factors, now: Factors) -> str:
    """What is different: nodes that are new, and nodes and links whose speed changed, the largest changes first."""
    known = {node.node_id for node in base.nodes}
    reasons = [(np.inf, f"{node.name} joined") for node in joined.nodes if node.node_id not in known]
    for node in joined.nodes:
        reasons += _speed(node.name, then.decode(node.node_id), now.decode(node.node_id))
    hops = [(then.hops.get(hop), factor) for hop, factor in now.hops.items()]
    if hops:
        before, after = max(hops, key=lambda pair: pair[1] / (pair[0] or 1.0))
        reasons += _speed("the network", before, after)
    reasons.sort(key=lambda reason: -reason[0])
    return ", ".join(text for _, text in reasons[:MOST_REASONS]) or "the speeds are others than measured"


def _speed(name: str, before: float | None, now: float | None) -> Sequence[tuple[float, str]]:
    """(how large the change is, in words), or nothing for a small one."""
    before, now = before or 1.0, now or 1.0
    change = max(now / before, before / now)
    if change < TOLD_CHANGE:
        return []
    return [(change, f"{name} {'slowed to' if now > before else 'is back at'} {1 / now:.2g}x")]
