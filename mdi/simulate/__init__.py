"""Clusters that nobody has to own: planned from files, and run in virtual time.

profiles   devices, links and clusters from TOML files, each figure with its source
problem    a cluster and a model as the planner's `Problem`
design     from a file to a plan
traffic    conversations that arrive
clock      virtual time
machine    one plan at work, with the starter's own scheduler
run        conversations on a cluster, and a node that dies on the way
report     what came of it, in numbers and words
"""
