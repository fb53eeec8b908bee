"""Checks of the base install for 64-bit Arm, without such a machine: its wheels, and a cluster of two under emulation."""
