"""Plans, nodes and answers as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mdi.plan.explain import NODE_HEADINGS, bars, node_rows, optimality, table
from mdi.plan.text import binary_bytes, counted, milliseconds

if TYPE_CHECKING:
    from mdi.engine.logits import TokenLogprobs
    from mdi.engine.sampling import SamplingParams
    from mdi.model.source import Model
    from mdi.pipeline.api import Answer
    from mdi.pipeline.recovery import Recovery
    from mdi.pipeline.survey import NodeList, NodeRow, StageRow
    from mdi.plan.costs import Problem
    from mdi.plan.plan import Plan

HEADINGS = ("node", "address", "computes on", "in use", "offers", "up", "holds")
STEP_HEADINGS = ("node", "blocks", "steps computed")


def plan_text(problem: Problem, plan: Plan) -> str:
    """Where the blocks lie, a table with a row for each stage, and the prediction."""
    times = plan.prediction
    speed, first_s = f"{times.decode_tokens_per_s:.1f} tok/s for one conversation", milliseconds(times.ttft_s)
    prompt = counted(problem.model.prompt_tokens, "prompt token")
    prediction = f"Predicted: {speed}, first token after {first_s} ({prompt}).\nBounded by {times.bottleneck}."
    if plan.gap:
        prediction += f"\n{optimality(plan)}"
    return "\n\n".join([bars(plan), table(NODE_HEADINGS, [row.cells() for row in node_rows(problem, plan)]), prediction])


def block_names(start: int, stop: int) -> str:
    """Blocks `start` to `stop - 1` as people write them."""
    return "none" if start == stop else str(start) if stop == start + 1 else f"{start}–{stop - 1}"


def nodes_text(nodes: NodeList) -> str:
    """A table of the nodes that answered, then a line for each that did not, and for other clusters nearby."""
    parts = []
    if reached := [_node_cells(row) for row in nodes.rows if row.reachable]:
        parts.append(table(HEADINGS, reached))
    parts += [f"{row.name} ({row.address}) cannot be used: {row.problem}" for row in nodes.rows if not row.reachable]
    if not nodes.rows:
        parts.append("No node of this cluster was found; `mdi node start` makes this device one.")
    if nodes.strangers:
        parts.append(f"{counted(nodes.strangers, 'node')} of another cluster can be seen here too.")
    return "\n".join(parts)


def _node_cells(row: NodeRow) -> tuple[str, ...]:
    held = ", ".join(_held(stage) for stage in row.stages)
    return (
        row.name + (" (this device)" if row.source == "self" else ""),
        row.address,
        row.accelerator or counted(row.threads or 0, "thread"),
        binary_bytes(row.memory_used_bytes or 0),
        f"{binary_bytes(row.memory_offered_bytes or 0)} of {binary_bytes(row.memory_total_bytes or 0)}",
        duration(row.uptime_s or 0),
        held or "nothing",
    )


def _held(stage: StageRow) -> str:
    """Its blocks, and how fast its last steps were beside the node's own profile."""
    speed = "" if stage.speed is None else f" at {stage.speed:.2g}x"
    return f"{stage.model} {block_names(stage.start, stage.stop)}{speed}"


def duration(seconds: float) -> str:
    """42 s, 7 min, 3 h, 12 days: enough for how long a node has been up."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def answer_line(answer: Answer, plan: Plan) -> str:
    """What an answer took, in one line."""
    times = answer.timings
    parts = [counted(times.new_tokens, "token")]
    if times.decode_tokens_per_s is not None:
        parts.append(f"{times.decode_tokens_per_s:.1f} tok/s")
    parts.append(f"first token after {milliseconds(times.ttft_s)}")
    if answer.finish_reason != "stop":
        parts.append("stopped" if answer.finish_reason == "cancelled" else "length limit reached")
    parts.append(" → ".join(stage.name for stage in plan.stages if len(stage.blocks)))
    return " · ".join(parts)


def stats_text(answer: Answer | None, n_messages: int, ctx: int, plan: Plan, steps: Mapping[str, int]) -> str:
    """For `/stats`: the last answer, how full the context is, and the work of each node."""
    lines = ["No answer yet."]
    if answer is not None:
        times = answer.timings
        used = times.prompt_tokens + times.new_tokens
        lines = [
            answer_line(answer, plan),
            f"prompt of {counted(times.prompt_tokens, 'token')}, {times.reused_tokens} of them still in memory",
            f"{counted(n_messages, 'message')}, {used} of {ctx} tokens",
        ]
        if times.drafted_tokens:
            lines.append(f"{times.accepted_tokens} of {counted(times.drafted_tokens, 'guessed token')} were right")
    return "\n".join([*lines, "", steps_table(plan, steps)])


def steps_table(plan: Plan, steps: Mapping[str, int]) -> str:
    """How many steps each node of the plan has computed."""
    rows = [
        (stage.name, block_names(stage.blocks.start, stage.blocks.stop), str(steps.get(stage.name, 0))) for stage in plan.stages
    ]
    return table(STEP_HEADINGS, rows)


def answer_json(
    answer: Answer, params: SamplingParams, model: Model, plan: Plan, recoveries: Sequence[Recovery] = ()
) -> dict[str, Any]:
    """What `mdi run --json` prints. Times are seconds, `bytes` what a node needs for the plan, which is the one at the end.

    `recoveries` are failures on the way that cost no token; `node` is null where nobody in particular failed.
    With `--logprobs` there is an entry for each of `token_ids`, in the form of OpenAI's API and with the ids beside it.
    """
    times = answer.timings
    told = {} if params.logprobs is None else {"logprobs": [_logprobs_json(each, model) for each in answer.logprobs]}
    return {
        "model": model.source.name,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_token_ids": list(answer.prompt_token_ids),
        "finish_reason": str(answer.finish_reason),
        "sampling": {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "seed": params.seed,
            "repetition_penalty": params.repetition_penalty,
            "frequency_penalty": params.frequency_penalty,
            "presence_penalty": params.presence_penalty,
            "logit_bias": dict(params.logit_bias),
        },
        **told,
        "timings": {
            "ttft_s": times.ttft_s,
            "decode_tokens_per_s": times.decode_tokens_per_s,
            "total_s": times.total_s,
            "prompt_tokens": times.prompt_tokens,
            "new_tokens": times.new_tokens,
            "reused_tokens": times.reused_tokens,
            "drafted_tokens": times.drafted_tokens,
            "accepted_tokens": times.accepted_tokens,
        },
        "plan": plan.to_json(),
        "recoveries": [asdict(each) for each in recoveries],
    }


def _logprobs_json(told: TokenLogprobs, model: Model) -> dict[str, Any]:
    """A token may be part of a character: `bytes` are all of it, `token` shows U+FFFD then."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        data = model.tokenizer.token_bytes[token_id]
        return {"token_id": token_id, "token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    return one(told.token_id, told.logprob) | {"top_logprobs": [one(*each) for each in told.top]}
