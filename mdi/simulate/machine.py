"""One plan at work in virtual time: the starter's own scheduler, steps that go round, and places that take as long as predicted.

What the starter does is what `pipeline/drive.py` and `pipeline/core.py` do: while it may send, it starts a step; otherwise it takes the
next result, and starts a step in the same turn if it may. Tokens are out at the end of the turn. There are no guesses, and no answer
ends before its length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mdi.engine.sampling import SamplingParams
from mdi.pipeline.scheduler import Scheduler, Sequence, Step
from mdi.plan.costs import Problem
from mdi.plan.forecast import Forecast
from mdi.plan.plan import Plan
from mdi.simulate.clock import Clock, Place

TOKEN = 0  # what every step is said to have sampled
GREEDY = SamplingParams()

OnToken = Callable[[Sequence], None]


class Machine:
    """`on_token` is called for each new token, after the sequence took it; a finished sequence has left its slot by then."""

    def __init__(self, clock: Clock, problem: Problem, plan: Plan, on_token: OnToken) -> None:
        model = problem.model
        self.scheduler = Scheduler(n_slots=model.slots, ctx=model.ctx, chunk_tokens=model.chunk_tokens)
        self.stages = [Place(clock) for _ in plan.stages]
        self._clock = clock
        self._problem = problem
        self._forecast = Forecast(problem, plan.node_ids, plan.counts)
        self.hops = [Place(clock) for _ in self._forecast.hops]
        self.scheduler.spread(self._forecast.rows_per_step)
        self._counts = plan.counts
        self._indices = [problem.index(node_id) for node_id in plan.node_ids]
        self._on_token = on_token
        self._in_flight: deque[Step] = deque()
        self._results: deque[Step] = deque()
        self._turning = False
        self._stopped = False

    def admit(self, prompt: list[int], answer_tokens: int) -> Sequence:
        """A new answer; raises what the scheduler does. To be followed by `wake`."""
        return self.scheduler.admit(prompt, GREEDY, max_new=answer_tokens)

    def stop(self) -> None:
        """A node is gone: nothing more comes out of this ring."""
        self._stopped = True

    def wake(self) -> None:
        """The starter's loop: one turn, if there is something to do and none is running."""
        if self._turning or self._stopped:
            return
        if self._can_send:
            self._turn(None)
        elif self._results:
            self._turn(self._results.popleft())

    @property
    def _can_send(self) -> bool:
        return self.scheduler.has_work and len(self._in_flight) < self._forecast.max_in_flight

    def _turn(self, result: Step | None) -> None:
        seconds, tokens = 0.0, list[Sequence]()
        if result is not None:
            self._in_flight.remove(result)
            seconds += self._sample(result, tokens)
        step = self.scheduler.next_step() if self._can_send else None
        if step is not None:
            seconds += self._stage_s(0, step)
            if self.hops:
                self._in_flight.append(step)
            else:
                seconds += self._sample(step, tokens)
        self._turning = True

        def done() -> None:
            self._turning = False
            if self._stopped:
                return
            if step is not None and self.hops:
                self._send(0, step)
            for sequence in tokens:
                self._on_token(sequence)
            self.wake()

        self.stages[0].work(seconds, done)

    def _send(self, hop: int, step: Step) -> None:
        """Over a hop, and through the stage behind it; the last hop leads back."""
        last = hop == len(self.hops) - 1
        rows = max(1, sum(row.emit if last else row.count for row in step.rows))

        def computed() -> None:
            if not self._stopped:
                self._send(hop + 1, step)

        def arrived() -> None:
            if self._stopped:
                return
            if last:
                self._results.append(step)
                self.wake()
            else:
                self.stages[hop + 1].work(self._stage_s(hop + 1, step), computed)

        self.hops[hop].work(self._problem.hop_s(*self._forecast.hops[hop], rows), arrived)

    def _stage_s(self, stage: int, step: Step) -> float:
        spans = [(row.count, row.position) for row in step.rows]
        return self._problem.step_time(self._indices[stage], spans).seconds(self._counts[stage])

    def _sample(self, step: Step, tokens: list[Sequence]) -> float:
        """As `StarterCore._sample`, with every token the same; the head's time."""
        wanted = 0
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            if not row.emit or sequence.finish is not None:
                continue
            wanted += row.emit
            sequence.accept(TOKEN)
            self.scheduler.settle(sequence, 0)
            tokens.append(sequence)
            if sequence.finish is not None:
                self.scheduler.release(sequence)
        return self._problem.head_s(wanted) if wanted else 0.0
