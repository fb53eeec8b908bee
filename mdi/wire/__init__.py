"""Between nodes: the control plane's messages, the data plane's frames, channels and errors."""

PROTOCOL = 1
"""Grows when an older peer would misread something; nodes of different versions refuse each other."""
