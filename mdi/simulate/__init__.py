"""Clusters that nobody has to own: planned from files, and run in virtual time.

profiles   devices, links and clusters from TOML files, each figure with its source
problem    a cluster and a model as the planner's `Problem`
workload   conversations that arrive
machine    the ring as a machine in virtual time, with the starter's own scheduler
failure    a node that dies: what is left, and what it costs to go on
report     what came of it, in numbers and words
"""
