from __future__ import annotations

from fractions import Fraction

import pytest

from mdi.plan.baselines import _MDI_LLM, alternatives, apportion


@pytest.mark.parametrize(
    ("weights", "counts"), [((1, 1, 1), [4, 3, 3]), ((3, 1), [8, 2]), ((1, 0), [10, 0]), ((1, 1, 3), [2, 2, 6]), ((7,), [10])]
)
def test_shares_are_whole_and_add_up(weights, counts):
    assert apportion(10, [Fraction(weight) for weight in weights]) == counts


def test_each_rule_splits_in_its_own_way(home):
    found = alternatives(home(("laptop", 8, 2), ("pi 1", 4, 8), ("pi 2", 4, 8)))
    assert {name: plan.counts for name, plan in found.items()} == {
        "best single device": (32,),
        "uniform": (11, 11, 10),
        "RAM-proportional": (16, 8, 8),
        "speed-proportional": (22, 5, 5),  # 21.3, 5.3, 5.3
        "MDI-LLM table": (8, 12, 12),
    }
    assert all(plan.objective is None for plan in found.values())


def test_the_best_single_device_may_be_a_worker(home):
    plan = alternatives(home(("laptop", 8, 2), ("desktop", 16, 0.5)))["best single device"]
    assert plan.counts == (0, 32)


def test_what_does_not_fit_is_none(home):
    found = alternatives(home(("laptop", 3, 2), ("pi", 3, 4)))
    assert found["best single device"] is None
    assert found["speed-proportional"].counts == (21, 11)
    assert alternatives(home(("laptop", 2, 1), ("pi", 4, 8)))["speed-proportional"] is None


def test_the_table_knows_only_its_own_sizes(home):
    assert "MDI-LLM table" not in alternatives(home(("laptop", 8, 2)))
    assert "MDI-LLM table" not in alternatives(home(("a", 8, 2), ("b", 8, 2), n_blocks=33))


def test_the_table_is_consistent():
    for (n_blocks, n_nodes), counts in _MDI_LLM.items():
        assert sum(counts) == n_blocks
        assert len(counts) == n_nodes
