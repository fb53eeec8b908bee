"""A cluster on one Linux machine: a network namespace, a cable, control groups and a real daemon for each node. See docs/testbed.md.

spec       the TOML file as typed values                              pure
network    the commands that lay the network                          pure
cgroups    which files limit a node                                   pure
delay      a cable that is late, where the kernel has no netem        a program of its own; its queue is pure
enter      starts a command inside a node                             a program of its own
machine    what this machine allows
bed        builds it all, runs commands in it, takes it down
leftovers  finds what belongs to a bed by its name, and removes it
"""
