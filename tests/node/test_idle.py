"""An idle node is small and starts fast: what it needs only to compute, or never, is not loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = (
    "onnx",
    "onnxruntime",
    "ml_dtypes",
    "torch",
    "scipy",
    "huggingface_hub",
    "tokenizers",
    "jinja2",
    "rich",
    "prompt_toolkit",
)


def test_a_daemon_loads_no_runtime_before_it_computes() -> None:
    program = f"import sys, mdi.node.daemon, mdi.cli.app; print(*sorted(sys.modules.keys() & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert done.stdout.split() == []
