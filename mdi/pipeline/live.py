"""From what the nodes say of their steps to what traffic shows of their speeds. Pure: it takes reports and times, and knows no network.

Each time is taken by one clock: a node's steps by the node's own, a trip round the ring by the starter's. What a trip takes beside the
stages went into the hops, and is shared among them in proportion to what was measured of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from mdi.plan.costs import Problem
from mdi.plan.live import Factor, Factors, StepTimes, factor_of, head_factor, hop_factor, mean_step_s
from mdi.plan.plan import Plan

# A report is one status: two seconds of traffic. Of five the median is moved by three, so what lasts less than four seconds moves no
# blocks, and what lasts is known after six. Time without traffic makes no reports.
REPORTS = 5
MIN_REPORTS = 3
# A node that was slow and left the ring shows no times any more. It is taken for slow for so long, and twice as long each time that it
# proves slow again; then what was measured of it counts again.
DISTRUST_S = 600.0
MOST_DISTRUST_S = 4 * 3600.0
SLOW_FACTOR = 1.25  # of a node that left: less would not have been the reason


@dataclass(slots=True)
class _Window:
    """The last reports of one node, or of the hops together; `steps_s` is what a step took by the newest one."""

    decode: deque[float] = field(default_factory=lambda: deque(maxlen=REPORTS))
    prefill: deque[float] = field(default_factory=lambda: deque(maxlen=REPORTS))
    step_s: float | None = None

    @property
    def factor(self) -> Factor:
        return Factor(*(median(found) if len(found) >= MIN_REPORTS else None for found in (self.decode, self.prefill)))


@dataclass(frozen=True, slots=True)
class _Distrust:
    factor: Factor
    until_s: float
    for_s: float


class LiveTimes:
    """`problem` has the times that were measured without traffic, of all nodes of the plan."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._distrust: dict[str, _Distrust] = {}
        self._nodes: dict[str, _Window] = {}
        self._hops = _Window()
        self._enter(problem, plan)

    def _enter(self, problem: Problem, plan: Plan) -> None:
        self._problem, self._plan = problem, plan
        self._counts = dict(zip(plan.node_ids, plan.counts, strict=True))
        self._nodes = {node_id: _Window() for node_id in plan.node_ids}
        hops = list(zip(plan.node_ids, (*plan.node_ids[1:], plan.node_ids[0]), strict=True)) if len(plan.stages) > 1 else []
        self._pairs = hops
        self._hops_s = sum(problem.links[pair].decode_s for pair in hops)
        self._hops = _Window()

    def replanned(self, problem: Problem, plan: Plan, now_s: float) -> None:
        """Another plan runs. What nodes that stay showed still holds; those that were slow and left are distrusted for a while."""
        before, known = self._nodes, {node_id: window.factor for node_id, window in self._nodes.items()}
        self._enter(problem, plan)
        for node_id, factor in known.items():
            if node_id in self._nodes:
                self._nodes[node_id] = before[node_id]
                before[node_id].step_s = None  # of other blocks
            elif factor.decode is not None and factor.decode >= SLOW_FACTOR:
                last = self._distrust.get(node_id)
                for_s = DISTRUST_S if last is None else min(MOST_DISTRUST_S, 2 * last.for_s)
                self._distrust[node_id] = _Distrust(factor, now_s + for_s, for_s)

    def report(self, node_id: str, times: Sequence[StepTimes]) -> None:
        """Steps of a node of the plan since its last report. Few of a kind tell nothing of it."""
        window, n_blocks = self._nodes.get(node_id), self._counts.get(node_id, 0)
        if window is None or not n_blocks:
            return
        factor = factor_of(self._problem, self._problem.index(node_id), n_blocks, times)
        if factor.decode is not None:
            window.decode.append(factor.decode)
            window.step_s = mean_step_s(times)
        if factor.prefill is not None:
            window.prefill.append(factor.prefill)

    def report_head(self, times: Sequence[StepTimes]) -> None:
        """The head's: it tells how slow the starter is where no blocks of its own do."""
        node_id = self._plan.node_ids[0]
        if not self._counts[node_id] and (factor := head_factor(self._problem, times)) is not None:
            self._nodes[node_id].decode.append(factor)

    def report_trip(self, trip_s: float) -> None:
        """The mean trip of decode steps that were alone in the ring, from the starter back to it, since the last report."""
        stages_s = [self._nodes[stage.node_id].step_s for stage in self._plan.stages[1:]]
        known_s = [step_s for step_s in stages_s if step_s is not None]
        if known_s and len(known_s) == len(stages_s):
            self._hops.decode.append(hop_factor(trip_s - sum(known_s), self._hops_s))

    def factors(self, now_s: float) -> Factors:
        """What is known now. Hops share what they took in proportion to what was measured: they have one factor."""
        known = {node_id: each.factor for node_id, each in self._distrust.items() if now_s < each.until_s}
        known |= {node_id: window.factor for node_id, window in self._nodes.items() if window.factor.decode is not None}
        hops = self._hops.factor.decode
        return Factors(known, {} if hops is None else dict.fromkeys(self._pairs, hops))
