"""What Prometheus reads: request metrics by the names that vLLM's dashboards ask for, and the ring's own per stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mdi.pipeline.api import Answer, FinishReason, Piece, Request

if TYPE_CHECKING:
    from mdi.pipeline.starter import Starter
    from mdi.serve.admission import Admission

# Bounds of histograms in seconds. vLLM's own go as low; homes are slower, so they go further up.
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TIME_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
COUNTS = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(slots=True, eq=False)
class Measured:
    """One answer that runs, with what Metrics has to know of it."""

    metrics: Metrics
    request: Request
    arrived_s: float
    admitted_s: float
    first_s: float | None = None
    last_s: float = 0.0
    n_new: int = 0
    answer: Answer | None = None

    def take(self, event: Piece | Answer, now_s: float) -> None:
        if isinstance(event, Answer):
            self.answer = event
        elif event.token_id is not None:
            self.n_new += 1
            self.metrics.generation_tokens.inc()
            if self.first_s is None:
                self.first_s = now_s
                self.metrics.ttft.observe(now_s - self.arrived_s)
                self.metrics.prompt_tokens.inc(len(self.request.prompt_ids))
            else:
                self.metrics.itl.observe(now_s - self.last_s)
            self.last_s = now_s

    @property
    def n_tokens(self) -> int:
        return len(self.request.prompt_ids) + self.n_new


@dataclass(slots=True)
class Metrics:
    """One server's registry: nothing global, so that two servers in a process do not mix."""

    model: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    running: set[Measured] = field(default_factory=set)
    prompt_tokens: Counter = field(init=False)
    generation_tokens: Counter = field(init=False)
    prefix_queries: Counter = field(init=False)
    prefix_hits: Counter = field(init=False)
    drafted: Counter = field(init=False)
    accepted: Counter = field(init=False)
    finished: Counter = field(init=False)
    refused: Counter = field(init=False)
    ttft: Histogram = field(init=False)
    itl: Histogram = field(init=False)
    times: dict[str, Histogram] = field(init=False)
    sizes: dict[str, Histogram] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of answers that began.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.prefix_queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens that were looked for in KV.")
        self.prefix_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens that were found in KV.")
        self.drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed.")
        self.accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Tokens guessed right.")
        self.ttft = self._histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", TTFT_S)
        self.itl = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", ITL_S)
        self.times = {
            name: self._histogram(f"vllm:{name}_seconds", text, TIME_S)
            for name, text in (
                ("e2e_request_latency", "From arrival to the last token."),
                ("request_queue_time", "Waiting for a slot."),
                ("request_prefill_time", "From the slot to the first token."),
                ("request_decode_time", "From the first token to the last."),
                ("request_inference_time", "From the slot to the last token."),
            )
        }
        self.sizes = {
            name: self._histogram(f"vllm:{name}", text, bounds)
            for name, text, bounds in (
                ("request_prompt_tokens", "Prompt tokens of a finished answer.", TOKENS),
                ("request_generation_tokens", "Tokens of a finished answer.", TOKENS),
                ("request_params_max_tokens", "What requests asked for as max_tokens.", TOKENS),
                ("request_params_n", "Answers that requests asked for.", COUNTS),
            )
        }
        labels = ("model_name", "engine", "finished_reason")
        self.finished = Counter("vllm:request_success", "Finished answers.", labels, registry=self.registry)
        self.refused = Counter("mdi_requests_refused", "Requests that were not answered.", ("status",), registry=self.registry)
        for reason in ("stop", "length", "abort", "error"):
            self.finished.labels(self.model, "0", reason)

    @contextmanager
    def answer(self, request: Request, arrived_s: float) -> Iterator[Measured]:
        """While one answer has a slot; whatever way it ends, it is counted."""
        measured = Measured(self, request, arrived_s, time.perf_counter())
        self.times["request_queue_time"].observe(measured.admitted_s - arrived_s)
        self.running.add(measured)
        failed = False
        try:
            yield measured
        except Exception:
            failed = True
            raise
        finally:
            self.running.discard(measured)
            self._count(measured, failed=failed)

    def _count(self, measured: Measured, *, failed: bool) -> None:
        answer = measured.answer
        aborted = not failed if answer is None else answer.finish_reason is FinishReason.CANCELLED
        reason = "abort" if aborted else "error" if answer is None or failed else str(answer.finish_reason)
        self.finished.labels(self.model, "0", reason).inc()
        if answer is None or failed:
            return
        timings, end_s, first_s = answer.timings, time.perf_counter(), measured.first_s or time.perf_counter()
        for name, seconds in (
            ("e2e_request_latency", end_s - measured.arrived_s),
            ("request_inference_time", end_s - measured.admitted_s),
            ("request_prefill_time", first_s - measured.admitted_s),
            ("request_decode_time", end_s - first_s),
        ):
            self.times[name].observe(seconds)
        self.sizes["request_prompt_tokens"].observe(timings.prompt_tokens)
        self.sizes["request_generation_tokens"].observe(timings.new_tokens)
        if measured.request.max_tokens is not None:
            self.sizes["request_params_max_tokens"].observe(measured.request.max_tokens)
        self.prefix_queries.inc(timings.prompt_tokens)
        self.prefix_hits.inc(timings.reused_tokens)
        self.drafted.inc(timings.drafted_tokens)
        self.accepted.inc(timings.accepted_tokens)

    def watch(self, starter: Starter, admission: Admission) -> None:
        """Gauges that are read from what there is when somebody asks."""
        self._gauge("vllm:num_requests_running", "Answers that have a slot.").set_function(lambda: admission.running)
        self._gauge("vllm:num_requests_waiting", "Answers that wait for a slot.").set_function(lambda: admission.waiting)
        held = admission.n_slots * starter.ctx
        self._gauge("vllm:kv_cache_usage_perc", "Part of all KV positions that running answers take, 0 to 1.").set_function(
            lambda: sum(measured.n_tokens for measured in self.running) / held
        )
        self.registry.register(RingCollector(starter))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ("model_name", "engine"), registry=self.registry).labels(self.model, "0")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("model_name", "engine"), registry=self.registry).labels(self.model, "0")

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("model_name", "engine"), buckets=bounds, registry=self.registry).labels(self.model, "0")


class RingCollector(Collector):
    """Each stage as its node last told, and each hop as the plan has it. A node that has not told anything yet is left out."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def collect(self) -> Iterable[Metric]:
        labels = ["node", "start", "stop"]
        busy = CounterMetricFamily("mdi_stage_busy_seconds", "Time that a stage computed.", labels=labels)
        steps = CounterMetricFamily("mdi_stage_steps", "Steps that a stage computed.", labels=labels)
        heat = GaugeMetricFamily("mdi_stage_temperature_celsius", "The hottest sensor of a stage's device.", labels=labels)
        memory = GaugeMetricFamily("mdi_stage_memory_available_bytes", "Memory that is free there.", labels=labels)
        for stage, status in self._starter.stage_statuses():
            values = [stage.name, str(stage.blocks.start), str(stage.blocks.stop)]
            busy.add_metric(values, status.busy_s)
            steps.add_metric(values, status.steps)
            memory.add_metric(values, status.memory_available_bytes)
            if status.temperature_c:
                heat.add_metric(values, status.temperature_c)
        yield from (busy, steps, heat, memory, *self._planned())

    def _planned(self) -> Iterable[Metric]:
        stages, predicted = self._starter.plan.stages, self._starter.plan.prediction
        compute = GaugeMetricFamily("mdi_plan_stage_seconds", "Predicted time of a step.", labels=["node", "kind"])
        wire = GaugeMetricFamily("mdi_plan_hop_seconds", "Predicted time of a frame.", labels=["from", "to", "kind"])
        for kind, stage_s, hop_s in (
            ("decode", predicted.stage_decode_s, predicted.hop_decode_s),
            ("prefill", predicted.stage_prefill_s, predicted.hop_prefill_s),
        ):
            for stage, seconds in zip(stages, stage_s, strict=True):
                compute.add_metric([stage.name, kind], seconds)
            following = [*stages[1:], stages[0]]
            for stage, after, seconds in zip(stages, following, hop_s, strict=False):
                wire.add_metric([stage.name, after.name, kind], seconds)
        return compute, wire
