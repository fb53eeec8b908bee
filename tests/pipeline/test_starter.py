from __future__ import annotations

import pytest

from mdi.cli.options import Ctx
from mdi.engine.protocol import MAX_THREADS
from mdi.errors import UserError
from mdi.node.daemon import NodeOptions
from mdi.node.results import MAX_WAITING_RESULTS
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.problem import DEFAULT_CTX, ctx_notices, ctx_of
from mdi.plan.forecast import steps_in_flight
from tests.node.test_stage import SPEC

CONFIG = SPEC.config


def test_every_stage_has_work_and_the_last_one_has_room_for_all_results() -> None:
    assert [steps_in_flight(n) for n in (2, 3, 8)] == [3, 4, 9]
    assert steps_in_flight(1000) == MAX_WAITING_RESULTS


@pytest.mark.parametrize("asked", [None, CONFIG.max_positions, CONFIG.max_positions + 1])
def test_a_context_beyond_the_model_is_cut_and_told(asked: int | None) -> None:
    assert ctx_of(asked, CONFIG) == min(asked or DEFAULT_CTX, CONFIG.max_positions)
    told = ctx_notices(asked, CONFIG)
    assert bool(told) == (asked is not None and asked > CONFIG.max_positions)
    assert all(f"--ctx {asked}" in notice and str(CONFIG.max_positions) in notice for notice in told)


def test_help_names_the_context_that_is_taken() -> None:
    assert f"at most {DEFAULT_CTX} of the model's own" in Ctx.__metadata__[0].help


@pytest.mark.parametrize("kind", [NodeOptions, StarterOptions])
@pytest.mark.parametrize("threads", [0, MAX_THREADS + 1])
def test_no_node_and_no_run_computes_with_more_threads_than_there_are(
    kind: type[NodeOptions] | type[StarterOptions], threads: int
) -> None:
    kind(threads=MAX_THREADS)
    with pytest.raises(UserError, match=f"--threads {threads}"):
        kind(threads=threads)
