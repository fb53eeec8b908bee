"""Which blocks go where. Pure: no network, no engine, no clock.

costs      what was measured, as a `Problem`
plan       the answer, as a `Plan`
predict    the one place where a ring's times are added up
instance   a `Problem` as arrays
rings      exact search over node choice and order, to 12 nodes
pinned     the same where nodes must hold certain blocks
ordered    exact search over node choice in a given order, to hundreds of nodes
exact      the optimum for every objective, from those three
bounds     what no ring can beat
tour       a short way round
large      a heuristic above 12 nodes, beside the bound
search     which of the two
wishes     nodes that must not take part, blocks that lie where they were pinned
live       times of real traffic, and the `Problem` that they show
moves      the ring that moves the fewest blocks among those that are good enough
adapt      when to plan again, and which plan to take then
solve      `solve`, `solve_order`, `manual`
baselines  what other systems would do
reason     one sentence: why this plan
explain    tables and bars
text       numbers as people read them
"""
