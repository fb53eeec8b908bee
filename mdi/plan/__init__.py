"""Which blocks go where. Pure: no network, no engine, no clock.

costs      what was measured, as a `Problem`
plan       the answer, as a `Plan`
predict    the one place where a ring's times are added up
instance   a `Problem` as arrays
rings      exact search over node choice and order, to 12 nodes
ordered    exact search over node choice in a given order, to hundreds of nodes
search     which of the two, and the heuristic above 12
solve      `solve`, `solve_order`, `manual`
baselines  what other systems would do
reason     one sentence: why this plan
explain    tables and bars
text       numbers as people read them
"""
