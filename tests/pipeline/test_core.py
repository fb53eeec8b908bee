from __future__ import annotations

from mdi.engine.sampling import SamplingParams
from mdi.engine.thread import BRIEF_TOKENS
from tests.pipeline.toy import ToyRing

GREEDY = SamplingParams()


def test_a_turn_is_brief_when_one_short_step_is_all_there_is_to_do() -> None:
    """Anything longer would keep the starter's loop from its other conversations."""
    ring = ToyRing(n_slots=2, ctx=64, chunk_tokens=16, max_in_flight=2)
    ring.scheduler.admit([1] * (BRIEF_TOKENS + 4), GREEDY)
    assert not ring.core.is_brief  # a prompt is to be read
    ring.step(wait=False)
    assert not ring.core.is_brief  # and how long a short step takes is not known yet
    ring.step(wait=True)
    assert ring.core.in_flight == 1
    assert ring.core.is_brief
    ring.scheduler.admit([1] * (BRIEF_TOKENS + 1), GREEDY)
    assert not ring.core.is_brief
    ring.step(wait=False)
    assert ring.core.in_flight == 2
    assert not ring.core.is_brief
