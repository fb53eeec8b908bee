"""`mdi serve` over three real daemons: the official client's answers, a client that goes away, and a chain that breaks."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import openai

from mdi.model.quantise import Quant
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.starter import draw_plan
from mdi.serve.server import ServeOptions
from mdi.serve.settings import Defaults
from tests.cluster.conftest import House
from tests.serve.servers import TIMEOUT_S, raw_post, running

LONG = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "temperature": 1, "stream": True}


def test_a_chain_of_three_serves_and_tells_when_it_breaks(house: House, tmp_path: Path) -> None:
    daemons = [house.start(name) for name in ("attic", "desk", "kitchen")]
    home = house.home("starter")
    peers = tuple(daemon.address for daemon in daemons)
    starting = StarterOptions(
        "demo", Quant.NONE, n_slots=1, split=(1, 3, 3, 3), peers=peers, discovery=False, threads=1, wait_s=0.1
    )
    problem = asyncio.run(draw_plan(starting, home, lambda _: None)).problem
    starting = replace(starting, max_memory_bytes=problem.bytes_needed(0, 4))  # alone it cannot hold all
    with running(starting, ServeOptions(port=0, defaults=Defaults(temperature=0.0)), home) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            whole = client.chat.completions.create(model="demo", messages=messages)  # type: ignore[call-overload]
            assert "Paris" in whole.choices[0].message.content
            stream = client.chat.completions.create(model="demo", messages=messages, stream=True)  # type: ignore[call-overload]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
        told = server.get("/health").json()
        assert [(stage["node"], stage["start"], stage["stop"]) for stage in told["stages"][1:]] == [
            ("attic", 1, 4),
            ("desk", 4, 7),
            ("kitchen", 7, 10),
        ]
        assert told["status"] == "ok"
        assert server.metric("mdi_stage_steps_total") > 0
        assert server.get("/metrics").text.count("mdi_stage_busy_seconds_total{") == 4

        with server.connect() as connection:
            connection.sendall(raw_post("/v1/completions", LONG))
            while b"data: " not in connection.recv(4096):
                pass
        short = {"prompt": "Once", "max_tokens": 2}
        assert server.post("/v1/completions", short).status_code == 200  # the only slot of every stage is free again
        assert server.metric("vllm:generation_tokens_total") < 800

        daemons[1].process.send_signal(signal.SIGKILL)
        assert server.post("/v1/completions", short).status_code == 200  # the answer goes on without it
        mended = server.get("/health").json()
        assert mended["status"] == "ok"
        assert "desk" not in {stage["node"] for stage in mended["stages"]}

        daemons[0].process.send_signal(signal.SIGKILL)
        daemons[2].process.send_signal(signal.SIGKILL)
        failed = server.post("/v1/completions", short)
        assert failed.status_code == 503
        assert int(failed.headers["retry-after"]) > 0
        assert failed.json()["error"]["code"] == "cluster_error"
        broken = server.get("/health")
        assert broken.status_code == 503
        assert broken.json()["status"] == "failed"
