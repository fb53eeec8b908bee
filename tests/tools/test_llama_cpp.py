from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from mdi.errors import ClusterError, UserError
from tools.llama_cpp import LlamaCpp, available_cores, rpc_workers
from tools.shapes import SHAPES

pytestmark = pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("gguf")), reason="needs the extra `bench`")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tools.make_gguf import make_gguf

    return make_gguf(SHAPES["tiny"], tmp_path_factory.mktemp("made") / "tiny.gguf").path


def test_a_loaded_model_is_measured_again_and_again_and_then_ends(tiny: Path) -> None:
    before = set(psutil.Process().children())  # other tests' compilers may live on
    with LlamaCpp(tiny, threads=1, context_tokens=256) as llama:
        for _ in range(3):
            timing = llama.measure(prompt_tokens=32, new_tokens=8)
            assert min(timing.prefill_tokens_per_s, timing.decode_tokens_per_s) > 1
            assert timing.peak_rss_bytes > 10 << 20
        (child,) = set(psutil.Process().children()) - before
    assert not child.is_running()


@pytest.mark.skipif(len(available_cores()) < 2, reason="each worker has a core of its own")
def test_rpc_workers_hold_the_model_between_them_and_end_with_their_block(tiny: Path) -> None:
    with rpc_workers(2) as workers:
        assert len({worker.endpoint for worker in workers}) == 2
        with LlamaCpp(tiny, threads=1, rpc=workers, context_tokens=256) as llama:
            assert llama.measure(32, 8).decode_tokens_per_s > 1
            psutil.Process(workers[1].pid).kill()
            with pytest.raises(ClusterError, match="has ended"):
                llama.measure(32, 8)
        assert psutil.pid_exists(workers[0].pid)
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_what_cannot_be_measured_is_said(tiny: Path, tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(UserError, match="does not exist"):
        LlamaCpp(tmp_path / "none.gguf", threads=1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:1000])
    with pytest.raises(ClusterError, match="has ended"):
        LlamaCpp(broken, threads=1)
    with LlamaCpp(tiny, threads=1, context_tokens=256) as llama, pytest.raises(UserError, match="do not fit"):
        llama.measure(200, 100)
    assert not set(psutil.Process().children()) - before
