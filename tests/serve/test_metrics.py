"""What Prometheus reads is what its own parser understands, and what dashboards ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.servers import Running

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "mdi.json"
# Of vLLM's own dashboards (examples/observability in its repository).
EXPECTED = {
    "vllm:e2e_request_latency_seconds_bucket", "vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_bucket",
    "vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum", "vllm:request_generation_tokens_bucket", "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket", "vllm:request_queue_time_seconds_sum", "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
}  # fmt: skip


def samples(server: Running) -> dict[str, list[dict[str, str]]]:
    """Labels by name of sample."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_the_names_of_vllm_are_there_with_its_labels(demo: Running) -> None:
    found = samples(demo)
    assert set(found) >= EXPECTED
    for name in EXPECTED:
        assert all((labels["model_name"], labels["engine"]) == ("demo", "0") for labels in found[name]), name
    reasons = {labels["finished_reason"] for labels in found["vllm:request_success_total"]}
    assert {"stop", "length", "abort", "error"} <= reasons


def test_our_dashboard_asks_for_nothing_that_is_not_there(demo: Running) -> None:
    demo.get("/nowhere")  # something was refused
    found = set(samples(demo)) | {"mdi_stage_temperature_celsius"}  # not every device has a thermometer
    asked = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\b(?:vllm:|mdi_)\w+", expression)}
    assert len(names) > 12
    assert names <= found


def test_tokens_and_answers_are_counted(demo: Running) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")
    before = [demo.metric(name) for name in names]
    used = demo.post("/v1/completions", {"prompt": "Hello there", "max_tokens": 5, "n": 2}).json()["usage"]
    after = [demo.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2 * used["prompt_tokens"], used["completion_tokens"], 2]


def test_refusals_are_counted_by_status(demo: Running) -> None:
    before = demo.get("/metrics").text.count('mdi_requests_refused_total{status="405"}')
    demo.get("/v1/completions")
    assert demo.get("/metrics").text.count('mdi_requests_refused_total{status="405"}') >= max(before, 1)


def test_the_ring_is_told_by_stage(demo: Running) -> None:
    demo.post("/v1/completions", {"prompt": "Hello", "max_tokens": 3})
    found = samples(demo)
    (stage,) = found["mdi_stage_steps_total"]
    assert (stage["start"], stage["stop"]) == ("0", str(demo.starter.model.config.n_blocks))
    assert demo.metric("mdi_stage_busy_seconds_total") > 0
    assert demo.metric("mdi_stage_memory_available_bytes") > 1 << 20
