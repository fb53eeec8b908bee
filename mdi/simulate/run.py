"""Conversations on a cluster in virtual time, and a node that dies on the way.

A node that dies is noticed as a frozen one is, by unanswered pings. Then a plan is made for the devices that are left, by the same
solvers; the starter sends each of them the blocks that it does not have, one after another; and every answer goes on from its tokens
so far, which are computed again as a prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from mdi.errors import ClusterError, UserError
from mdi.pipeline.scheduler import Sequence
from mdi.plan.costs import LinkTable, Problem
from mdi.plan.plan import Plan
from mdi.plan.wishes import find
from mdi.simulate.clock import Clock
from mdi.simulate.machine import Machine
from mdi.simulate.traffic import Request

DETECTION_S = 5.0  # HTTP/2 pings that a frozen peer does not answer (wire/channel.py)

MOST_SECONDS = 1e9  # thirty years

Planner = Callable[[Problem], Plan]


@dataclass(frozen=True, slots=True)
class Death:
    """This node (by name) is gone at this time."""

    node: str
    at_s: float


@dataclass(slots=True)
class Conversation:
    """One request on its way. Times are virtual seconds; None: not yet, or never."""

    request: Request
    number: int
    n_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    longest_pause_s: float = 0.0  # between two of its tokens
    failed: bool = False

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.request.arrival_s


@dataclass(frozen=True, slots=True)
class Recovery:
    """What it took to go on after a death. `plan` None: the devices that were left could not hold the model, because of `problem`."""

    death: Death
    was_used: bool
    plan: Plan | None
    problem: str | None
    sent_bytes: int
    ready_s: float


@dataclass(slots=True)
class Outcome:
    """`busy_s` by node name, of the nodes that any plan used; `hop_busy_s` of the last plan's hops, in its order."""

    plan: Plan
    conversations: list[Conversation]
    end_s: float = 0.0
    events: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)
    hop_busy_s: list[float] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)


def simulate(
    problem: Problem, plan: Plan, requests: list[Request], planner: Planner, row_bytes: int, deaths: tuple[Death, ...] = ()
) -> Outcome:
    """Runs until every answer is whole, or no ring is left. `row_bytes` is what a row of a frame takes.

    Raises UserError for a death that cannot be.
    """
    for death in deaths:
        if find(problem, death.node).node_id == problem.nodes[0].node_id:
            raise UserError("the starter cannot die: the conversations are there", hint="name another node in --kill")
        if not 0 <= death.at_s < MOST_SECONDS:
            raise UserError(f"{death.at_s:g} s is no time to die", hint="write --kill NODE@SECONDS")
    run = _Run(problem, plan, requests, planner, row_bytes)
    for death in deaths:
        run.plan_death(death, find(problem, death.node).node_id)
    return run.outcome_at_the_end()


class _Run:
    """`_machine` None: no ring is up, now or for ever. `_epoch` counts rings: what was set for an older one does not happen."""

    def __init__(self, problem: Problem, plan: Plan, requests: list[Request], planner: Planner, row_bytes: int) -> None:
        self._clock = Clock()
        self._problem = problem
        self._planner = planner
        self._row_bytes = row_bytes
        self._waiting: deque[Conversation] = deque()
        self._running: dict[Sequence, Conversation] = {}
        self._held = {stage.node_id: set(range(stage.blocks.start, stage.blocks.stop)) for stage in plan.stages}
        self._outcome = Outcome(plan, [Conversation(request, number) for number, request in enumerate(requests, 1)])
        self._machine: Machine | None = Machine(self._clock, problem, plan, self._on_token)
        self._epoch = 0
        for conversation in self._outcome.conversations:
            self._clock.at(conversation.request.arrival_s, partial(self._arrive, conversation))

    def plan_death(self, death: Death, node_id: str) -> None:
        self._clock.at(death.at_s, partial(self._die, death, node_id))

    def outcome_at_the_end(self) -> Outcome:
        outcome = self._outcome
        self._clock.run()
        self._count_busy()
        outcome.events = self._clock.events
        for conversation in outcome.conversations:
            conversation.failed = conversation.n_tokens < conversation.request.answer_tokens
        return outcome

    def _arrive(self, conversation: Conversation) -> None:
        self._waiting.append(conversation)
        self._admit()

    def _admit(self) -> None:
        """Who waits gets the slots that are free, in the order of arrival."""
        while self._machine is not None and self._waiting and len(self._running) < self._problem.model.slots:
            conversation = self._waiting.popleft()
            request = conversation.request
            # Ids that no other conversation has: nothing of it is found in another one's slot.
            prompt = [conversation.number] * (request.prompt_tokens + conversation.n_tokens)
            self._running[self._machine.admit(prompt, request.answer_tokens - conversation.n_tokens)] = conversation
            self._machine.wake()

    def _on_token(self, sequence: Sequence) -> None:
        conversation, now_s = self._running[sequence], self._clock.now_s
        if conversation.last_s is None:
            conversation.first_s = now_s
        else:
            conversation.longest_pause_s = max(conversation.longest_pause_s, now_s - conversation.last_s)
        conversation.last_s = self._outcome.end_s = now_s
        conversation.n_tokens += 1
        if sequence.finish is not None:
            del self._running[sequence]
            self._admit()

    def _die(self, death: Death, node_id: str) -> None:
        outcome = self._outcome
        if all(node.node_id != node_id for node in self._problem.nodes):
            return  # dead already
        self._problem = _without(self._problem, node_id)
        if node_id not in outcome.plan.node_ids:
            outcome.recoveries.append(Recovery(death, False, outcome.plan, None, 0, self._clock.now_s))
            return
        self._count_busy()
        if self._machine is not None:
            self._machine.stop()
        self._machine = None
        self._epoch += 1
        self._waiting.extendleft(sorted(self._running.values(), key=lambda each: -each.number))
        self._running = {}
        self._clock.at(self._clock.now_s + DETECTION_S, partial(self._recover, death, self._epoch))

    def _recover(self, death: Death, epoch: int) -> None:
        if epoch != self._epoch:
            return  # another node died meanwhile
        outcome = self._outcome
        try:
            plan = self._planner(self._problem)
        except ClusterError as error:
            outcome.recoveries.append(Recovery(death, True, None, str(error), 0, self._clock.now_s))
            return
        sent_bytes, seconds = self._send_missing(plan)
        ready_s = self._clock.now_s + seconds
        outcome.recoveries.append(Recovery(death, True, plan, None, sent_bytes, ready_s))
        outcome.plan = plan
        self._clock.at(ready_s, partial(self._open, Machine(self._clock, self._problem, plan, self._on_token), epoch))

    def _open(self, machine: Machine, epoch: int) -> None:
        if epoch == self._epoch:
            self._machine = machine
            self._admit()

    def _send_missing(self, plan: Plan) -> tuple[int, float]:
        """Bytes of the blocks that nodes of the plan do not have, and how long the starter sends them."""
        starter, sent_bytes, seconds = self._problem.nodes[0].node_id, 0, 0.0
        for stage in plan.stages:
            held = self._held.setdefault(stage.node_id, set())
            missing = set(range(stage.blocks.start, stage.blocks.stop)) - held
            held |= missing
            if stage.node_id != starter and missing:
                n_bytes = len(missing) * self._problem.model.block_bytes
                sent_bytes += n_bytes
                seconds += n_bytes / self._bytes_per_s(starter, stage.node_id)
        return sent_bytes, seconds

    def _bytes_per_s(self, sender: str, receiver: str) -> float:
        """From the two frame sizes that the link is known for: what the larger one has more takes so much longer."""
        link, chunk_tokens = self._problem.links[sender, receiver], self._problem.model.chunk_tokens
        more_bytes = (chunk_tokens - 1) * self._row_bytes
        return more_bytes / (link.prefill_s - link.decode_s) if link.prefill_s > link.decode_s else math.inf

    def _count_busy(self) -> None:
        """Adds up what the present machine's places have worked."""
        outcome = self._outcome
        if self._machine is None:
            return
        for stage, place in zip(outcome.plan.stages, self._machine.stages, strict=True):
            outcome.busy_s[stage.name] = outcome.busy_s.get(stage.name, 0.0) + place.busy_s
        outcome.hop_busy_s = [place.busy_s for place in self._machine.hops]


def _without(problem: Problem, node_id: str) -> Problem:
    nodes = tuple(node for node in problem.nodes if node.node_id != node_id)
    links = problem.links
    if isinstance(links, LinkTable):
        links = links.among(tuple(node.node_id for node in nodes))
    return replace(problem, nodes=nodes, links=links)
