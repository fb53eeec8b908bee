from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from onnx import TensorProto

from mdi.engine.graph import GraphBuilder
from mdi.engine.onnx_engine import open_session, untouched

WIDTH = 512
MIB = 1 << 20


def product_graph() -> bytes:
    """A product that is large enough for onnxruntime to share it among threads."""
    g = GraphBuilder("product")
    g.input("x", TensorProto.FLOAT, ["T", WIDTH])
    g.node("MatMul", ["x", g.constant("w", np.ones((WIDTH, WIDTH), np.float32))], ["y"])
    g.output("y", TensorProto.FLOAT, ["T", WIDTH])
    return g.model()


def test_threads_of_a_session_rest_between_runs(tmp_path: Path) -> None:
    """Spinning ones take the cores from the head's session, the event loop and other nodes of the machine."""
    session = open_session(product_graph(), tmp_path, threads=8)
    x: NDArray[np.float32] = np.ones((WIDTH, WIDTH), np.float32)
    idle_s = []
    for _ in range(5):
        session.run(["y"], {"x": x})
        before_s = time.process_time()
        threading.Event().wait(0.01)
        idle_s.append(time.process_time() - before_s)
    assert min(idle_s) < 0.002


def test_a_cache_takes_memory_only_where_it_was_written() -> None:
    """numpy asks for huge pages, in which a head's first token takes 2 MiB."""
    before = psutil.Process().memory_info().rss
    cache = untouched((128, MIB // 4))
    cache[:, 0] = 1
    assert psutil.Process().memory_info().rss - before < 4 * MIB
    assert np.count_nonzero(cache) == 128
