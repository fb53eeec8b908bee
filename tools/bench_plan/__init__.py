"""Plans against measurements on the testbed: `make bench-plan`, or `python -m tools.bench_plan`. It needs root (docs/testbed.md).

alternatives  four unlike devices: our plan and every other rule's, measured, for one conversation and for four
predictions   what was predicted beside what was measured: decode and first token, on six testbeds with three shapes of models
exhaustive    three devices, eight blocks: all splits measured, and how close ours is to the best
times         profiling a node, measuring the links of eight, planning for them
slowdown      a node is slowed to a third while it answers; how soon a better plan runs, and how good it is
"""
