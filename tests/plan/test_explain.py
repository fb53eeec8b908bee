"""What people read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.plan.baselines import alternatives
from mdi.plan.explain import (
    NODE_HEADINGS,
    bars,
    comparison,
    explain,
    load_rows,
    node_rows,
    optimality,
    split_text,
    table,
)
from mdi.plan.plan import BlockRange, Objective
from mdi.plan.reason import why
from mdi.plan.solve import manual, solve
from mdi.plan.text import binary_bytes, counted, milliseconds
from mdi.plan.wishes import Pin

LATENCY, THROUGHPUT = Objective.LATENCY, Objective.THROUGHPUT


def reason(problem, objective=LATENCY, **wishes):
    return why(problem, solve(problem, objective, **wishes))


def test_alone_because_hops_and_slow_helpers_cost_more(home):
    assert reason(home(("laptop", 8, 3), ("pi", 4, 15))) == (
        "laptop alone is fastest, 102 ms a token: the best split takes 116 ms, 1.20 ms of it hops, "
        "and pi's blocks take 5.0x as long."
    )


def test_alone_because_there_is_nobody_else(home):
    assert reason(home(("laptop", 8, 3))) == "laptop is the only device."


def test_alone_because_nobody_else_can_help(home):
    assert reason(home(("laptop", 8, 3), ("watch", 0.1, 15))) == "laptop holds all the blocks, and no other device can help."


def test_split_because_no_device_holds_everything(home):
    assert reason(home(("laptop", 3, 3), ("pi", 3, 15))) == (
        "No single device holds all 32 blocks, so each token also pays 1.20 ms of hops."
    )


def test_split_although_one_device_would_be_faster(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    assert reason(problem, min_nodes=2) == (
        "laptop alone would take 102 ms a token against 116 ms, but more than one device was asked for."
    )
    problem = home(("laptop", 8, 3), ("desktop", 16, 0.9))
    assert reason(problem) == (
        "desktop alone would take 36.4 ms a token against 38.9 ms, but the starter was to keep blocks of its own."
    )


def test_split_because_it_is_faster(home):
    text = reason(home(("laptop", 8, 3), ("desktop", 3, 0.9), ("server", 2.5, 0.9)))
    # 6 + (0.4 + 3) + (0.4 + 23 * 0.9) + (0.4 + 8 * 0.9), and three hops of 0.6
    assert text == "The split takes 39.9 ms a token against 102 ms on laptop alone, hops included."


def test_everything_on_a_worker(home):
    problem = home(("laptop", 8, 3), ("desktop", 16, 1.5))
    assert reason(problem, starter_min_blocks=0) == (
        "desktop does all the blocks 2.0x as fast as laptop would, which outweighs 1.20 ms of hops."
    )
    assert reason(home(("phone", 0.3, 3), ("desktop", 16, 1.5))) == (
        "desktop holds all the blocks, which phone cannot; the way there and back costs 1.20 ms."
    )


def test_throughput_says_what_a_full_ring_gains(home):
    problem = home(("laptop", 8, 3), ("pi 1", 4, 15), ("pi 2", 4, 15), starter_s=5e-3)
    assert reason(problem, THROUGHPUT) == (
        "A full ring of 3 devices gives 13.3 tok/s against 9.9 tok/s on laptop alone; "
        "it is bounded by the stage on pi 1 (75.4 ms)."
    )
    assert reason(home(("laptop", 3, 3), ("pi", 3, 15)), THROUGHPUT) == (
        "No single device holds all 32 blocks; a full ring is bounded by the stage on pi (165 ms)."
    )
    assert reason(home(("laptop", 8, 1), ("pi", 8, 15), hop_s=0.1), THROUGHPUT) == (
        "laptop alone gives the most, 26.0 tok/s: no ring has a faster slowest stage or hop."
    )


def test_a_split_by_hand_is_not_defended(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    plan = manual(problem, ["id-laptop", "id-pi"], [16, 16])
    assert why(problem, plan) == "The split was given; it is bounded by the stage on pi (240 ms)."


def test_rows_carry_numbers_and_text(home):
    problem = home(("phone", 0.3, 3), ("desktop", 16, 1), ("pi", 4, 15))
    phone, desktop = node_rows(problem, solve(problem, LATENCY))
    assert phone.cells() == ("phone", "none", "0%", "256 MiB of 307 MiB", "6.00 ms", "6.00 ms", "0.600 ms")
    assert desktop.cells() == ("desktop", "0–31", "100%", "4.1 GiB of 16.0 GiB", "257 ms", "32.4 ms", "0.600 ms")
    alone = home(("laptop", 8, 3))
    (laptop,) = node_rows(alone, solve(alone, LATENCY))
    assert laptop.hop_s is None
    assert laptop.cells()[-1] == ""


def test_bars_show_where_the_blocks_lie(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    assert bars(manual(problem, ["id-laptop", "id-pi"], [24, 8]), width=8).splitlines() == [
        "laptop ██████░░ 78.4 ms",
        "pi     ░░░░░░██ 120 ms",
    ]
    narrow = bars(manual(problem, ["id-laptop", "id-pi"], [31, 1]), width=4).splitlines()
    assert [line.split()[1] for line in narrow] == ["███░", "░░░█"]
    first = bars(manual(problem, ["id-laptop", "id-pi"], [1, 31]), width=4).splitlines()[0]
    assert first.split()[1] == "█░░░"  # a quarter drawn for one block of 32, rather than nothing
    empty = bars(manual(home(("a", 8, 3), ("b", 8, 3)), ["id-a", "id-b"], [0, 32]), width=4).splitlines()
    assert [line.split()[1] for line in empty] == ["░░░░", "████"]


def test_alternatives_stand_side_by_side(home):
    problem = home(("laptop", 3, 3), ("pi", 4, 15))
    rows = comparison(solve(problem, LATENCY), alternatives(problem))
    assert rows[0] == ("this plan", "21,11", "4.2 tok/s", "6.0 tok/s", "3160 ms")  # chunks: 511 + 6 + 1321 + 0.6, then 1321
    assert rows[1] == ("best single device", "does not fit", "", "", "")
    assert [row[0] for row in rows[2:]] == ["uniform", "RAM-proportional", "speed-proportional", "MDI-LLM table"]


def test_a_table_is_aligned():
    assert table(("a", "bb"), [("ccc", "d"), ("e", "")]) == "a    bb\nccc   d\ne"


def test_a_long_split_is_cut():
    assert split_text([4, 6, 6]) == "4,6,6"
    assert split_text([1] * 85) == "1,1,1,1,1,1,1,1,… (85 stages)"


def test_what_is_proven_is_said(home):
    plan = solve(home(("laptop", 8, 3), ("pi", 4, 15)), LATENCY)
    assert optimality(plan) == "Proven: no other choice, order or split of these devices is better."
    loose = replace(plan, bound_s=plan.value_s / 1.05)
    assert loose.gap == pytest.approx(0.05)
    assert optimality(loose) == "Proven: no plan is more than 5.0% better (none takes less than 97.5 ms)."
    assert optimality(manual(home(("laptop", 8, 3)), ["id-laptop"], [32])) == ""


def test_several_conversations_stand_side_by_side(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    rows = load_rows(problem, solve(problem, LATENCY))
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    assert rows[0][1:] == ("9.8 tok/s", "9.8 tok/s")  # these devices say nothing of what a context costs


def test_pins_are_weighed_against_a_plan_without_them(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    pins = [Pin("pi", BlockRange(28, 32))]
    assert why(problem, solve(problem, LATENCY, pins=pins), pins) == (
        "This is the best that the pinned blocks allow: 152 ms a token, 102 ms without pins."
    )
    own = [Pin("laptop", BlockRange(2, 3))]
    assert why(problem, solve(problem, LATENCY, pins=own), own) == (
        "The pinned blocks cost nothing: without pins a token would take 102 ms too."
    )


def test_a_mixed_plan_is_weighed_against_one_device(home):
    assert reason(home(("laptop", 8, 3), ("pi", 4, 15)), Objective.MIXED).startswith(
        "50% of the tokens under load and the rest alone take "
    )


def test_an_explanation_has_all_its_parts(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    text = explain(problem, solve(problem, THROUGHPUT))
    for part in ("A full ring", "█", *NODE_HEADINGS, "Bounded by", "RAM-proportional", "first token"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0001234, "0.123 ms"), (0.00456, "4.56 ms"), (0.0789, "78.9 ms"), (1.234, "1234 ms")]
)
def test_times_have_three_figures(seconds, text):
    assert milliseconds(seconds) == text


def test_sizes_and_counts_read_well():
    assert [binary_bytes(n) for n in (12 << 10, 320 << 20, 3 << 29)] == ["12 KiB", "320 MiB", "1.5 GiB"]
    assert [counted(1, "block"), counted(2, "block")] == ["1 block", "2 blocks"]
