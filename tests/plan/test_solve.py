"""Which plan comes out for homes one can picture, and what is said when there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.errors import ClusterError, InternalError, LinkError, NoRoom, UserError
from mdi.plan.costs import UNREACHABLE, StageTime
from mdi.plan.plan import Objective
from mdi.plan.solve import manual, solve, solve_order

LATENCY, THROUGHPUT = Objective.LATENCY, Objective.THROUGHPUT


def names(plan):
    return [stage.name for stage in plan.stages]


def test_one_conversation_stays_on_a_laptop_that_holds_it(home):
    plan = solve(home(("laptop", 8, 3), ("pi", 4, 15)), LATENCY)
    assert names(plan) == ["laptop"]
    assert plan.counts == (32,)


def test_several_conversations_use_the_slow_devices_too(home):
    plan = solve(home(("laptop", 8, 3), ("pi 1", 4, 15), ("pi 2", 4, 15)), THROUGHPUT)
    assert sorted(names(plan)) == ["laptop", "pi 1", "pi 2"]
    assert plan.counts == (23, 5, 4)  # 75.4, 75.4 and 60.4 ms; 22,5,5 is as fast when full, and slower for one conversation


def test_the_fastest_device_takes_all_but_what_the_starter_keeps(home):
    problem = home(("laptop", 8, 3), ("desktop", 16, 0.9))
    assert solve(problem, LATENCY).counts == (1, 31)
    assert solve(problem, LATENCY, starter_min_blocks=0).counts == (0, 32)
    assert solve(problem, LATENCY, starter_min_blocks=5).counts == (5, 27)


def test_a_starter_that_holds_no_block_has_no_stage(home):
    plan = solve(home(("phone", 0.3, 3), ("desktop", 16, 0.9)), LATENCY)
    assert plan.counts == (0, 32)
    assert len(plan.prediction.hop_decode_s) == 2
    assert plan.stages[0].bytes == 256 << 20


def test_as_many_devices_as_asked_for_hold_blocks(home):
    problem = home(("laptop", 8, 3), ("pi 1", 4, 15), ("pi 2", 4, 16))
    assert solve(problem, LATENCY, min_nodes=3).counts == (30, 1, 1)
    assert names(solve(problem, LATENCY, min_nodes=2)) == ["laptop", "pi 1"]


@pytest.mark.parametrize("objective", Objective)
def test_of_equal_plans_the_one_with_fewer_devices_is_taken(home, objective):
    """Two small devices or one large one behind a phone without blocks: the same step to the last bit."""
    problem = home(("phone", 0.3, 1), ("small 1", 2.1, 1), ("small 2", 2.1, 1), ("large", 8, 1), hop_s=0.0, starter_s=1.0)
    free = [replace(node, decode=StageTime(0.0, 2**-8)) for node in problem.nodes]
    assert names(solve(replace(problem, nodes=tuple(free)), objective)) == ["phone", "large"]


def test_the_order_follows_the_links(home):
    problem = home(("a", 1.5, 3), ("b", 1.5, 3), ("c", 2, 3))
    slow = {pair: replace(link, decode_s=0.05) for pair, link in problem.links.items()}
    ring = [("id-a", "id-c"), ("id-c", "id-b"), ("id-b", "id-a")]
    problem = replace(problem, links={**slow, **{pair: problem.links[pair] for pair in ring}})
    for objective in Objective:
        assert names(solve(problem, objective)) == ["a", "c", "b"]


def test_a_given_order_is_kept(home):
    problem = home(("a", 2, 3), ("b", 2, 3), ("c", 2, 3))
    plan = solve_order(problem, ["id-a", "id-c", "id-b"], LATENCY, min_nodes=3)
    assert names(plan) == ["a", "c", "b"]
    with pytest.raises(UserError, match="begin with the starter"):
        solve_order(problem, ["id-b", "id-a"], LATENCY)


@pytest.mark.parametrize("objective", Objective)
def test_fifty_devices_are_planned_too(home, objective):
    problem = home(*[(f"pi {index}", 1, 10 + index % 7) for index in range(50)])
    plan = solve(problem, objective)
    assert sum(plan.counts) == 32
    assert plan.objective is objective


def test_missing_memory_is_counted(home):
    with pytest.raises(NoRoom) as caught:
        solve(home(("laptop", 2, 3), ("pi", 1, 15)), LATENCY)
    assert str(caught.value) == "only 20 of 32 blocks fit: 1.5 GiB of memory are missing"
    assert "--ctx" in caught.value.hint
    assert "--quant" in caught.value.hint
    assert "add a node" in caught.value.hint


def test_a_starter_too_small_for_the_head_is_named(home):
    with pytest.raises(NoRoom, match="phone offers 102 MiB, and the starter needs 256 MiB for embedding and head"):
        solve(home(("phone", 0.1, 3), ("desktop", 16, 1)), LATENCY)


def test_too_few_devices_are_told_from_too_small_ones(home):
    with pytest.raises(ClusterError, match="a plan over 2 devices was asked for, and there are 1") as caught:
        solve(home(("laptop", 8, 3)), LATENCY, min_nodes=2)
    assert not isinstance(caught.value, NoRoom)
    with pytest.raises(NoRoom, match="only 1 can hold a block"):
        solve(home(("laptop", 8, 3), ("watch", 0.1, 30)), LATENCY, min_nodes=2)


@pytest.mark.parametrize("wishes", [{"min_nodes": 0}, {"starter_min_blocks": -1}, {"min_nodes": 33}])
def test_impossible_wishes_are_refused(home, wishes):
    with pytest.raises(UserError):
        solve(home(("laptop", 8, 3), ("pi", 4, 15)), LATENCY, **wishes)


@pytest.mark.parametrize("objective", Objective)
def test_devices_that_no_ring_connects_are_a_link_error(home, objective):
    problem = home(("laptop", 2, 3), ("desktop", 16, 1))
    apart = replace(problem, links={**problem.links, ("id-desktop", "id-laptop"): UNREACHABLE})
    with pytest.raises(LinkError, match="no ring connects"):
        solve(apart, objective)


def test_a_split_by_hand_is_taken_as_it_is(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    plan = manual(problem, ["id-laptop", "id-pi"], [8, 24])
    assert plan.objective is None
    assert plan.counts == (8, 24)
    assert manual(problem, ["id-laptop", "id-pi"], [4, 28]).counts == (4, 28)
    assert solve(problem, LATENCY).prediction.decode_step_s < plan.prediction.decode_step_s


def test_the_starter_may_be_given_no_block_by_hand(home):
    plan = manual(home(("laptop", 8, 3), ("desktop", 16, 1)), ["id-laptop", "id-desktop"], [0, 32])
    assert len(plan.stages[0].blocks) == 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([8, 23], "the split 8,23 adds up to 31, not 32"),
        ([32, 0], "the split 32,0 gives a device no block"),
        ([-1, 33], "gives a device no block"),
        ([8, 12, 12], "is for 3 devices, and there are 2"),
        ([32], "is for 1 device, and there are 2"),
    ],
)
def test_a_wrong_split_is_refused(home, counts, message):
    with pytest.raises(UserError, match=message) as caught:
        manual(home(("laptop", 8, 3), ("pi", 4, 15)), ["id-laptop", "id-pi"], counts)
    assert caught.value.hint


def test_a_split_that_does_not_fit_names_the_device(home):
    problem = home(("laptop", 8, 3), ("pi", 2, 15))
    with pytest.raises(NoRoom, match=r"pi cannot hold 16 blocks: they need 2\.1 GiB and it offers 2\.0 GiB") as caught:
        manual(problem, ["id-laptop", "id-pi"], [16, 16])
    assert "at most 15 blocks" in caught.value.hint


def test_an_order_by_hand_begins_at_the_starter_and_repeats_nobody(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    for order in (["id-pi", "id-laptop"], ["id-laptop", "id-laptop"]):
        with pytest.raises(UserError, match="begin with the starter"):
            manual(problem, order, [16, 16])
    with pytest.raises(InternalError, match="no node"):
        manual(problem, ["id-laptop", "id-nobody"], [16, 16])
