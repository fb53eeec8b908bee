"""Speed and memory beside llama.cpp: `make bench`, or `python -m tools.bench`.

    single     one process with 1 and 2 threads, beside llama.cpp with as many
    pair       two nodes of one thread each, pinned to a core each, beside one process of one thread and llama.cpp's RPC with two workers
    house      three daemons of one thread over which the planner spreads the model; its prediction beside what was measured
    gguf       both engines on the very same GGUF file
    batch      several sequences at once in both
    bandwidth  what decoding reads, beside what the memory gives to as many threads
    load       the start from cached packs, and the memory it takes, beside llama.cpp's
    convert    how packs are made from a checkpoint: time and memory

All engines of a part stay loaded and take turns, so that a noisy machine disturbs them alike; medians and ratios of neighbouring rounds
are printed.
"""
