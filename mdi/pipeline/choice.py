"""Which plan the options ask for, on real nodes and on paper alike, and what is left of their wishes when nodes are gone."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from mdi.errors import ClusterError, UserError
from mdi.pipeline.api import StarterOptions
from mdi.plan.costs import UNREACHABLE, LinkTable, Problem
from mdi.plan.plan import Plan
from mdi.plan.solve import manual, solve
from mdi.plan.wishes import Wishes, permitted, starter_min_blocks


def best_plan(problem: Problem, options: StarterOptions) -> Plan:
    """The best one by `options`, but for `split`. Raises as `solve` does."""
    pins = options.wishes.pins
    return solve(
        problem,
        options.objective,
        min_nodes=options.min_nodes,
        starter_min_blocks=starter_min_blocks(problem, pins),
        pins=pins,
        mixed_share=options.mixed_share,
    )


def chosen_plan(problem: Problem, options: StarterOptions) -> Plan:
    """The best one, or the split that was asked for. Raises as `solve` and `manual` do."""
    return best_plan(problem, options) if options.split is None else _by_hand(problem, options.split)


def plan_of_those_left(problem: Problem, left: Problem, options: StarterOptions) -> Plan:
    """The plan for `left`, what is there of `problem`: an answer goes on with fewer nodes than were asked for.

    When nodes are missing, or offer less than they did, so are the wishes that name them or count on them: `--split`, `--pin` of those
    that are gone, `--min-nodes`. Raises as `solve` does.
    """
    if len(left.nodes) == len(problem.nodes):
        with suppress(ClusterError):
            return chosen_plan(left, options)
    pins = tuple(pin for pin in options.wishes.pins if is_here(left, pin.node))
    able = sum(left.block_limit(index) > 0 for index in range(len(left.nodes)))
    options = replace(options, split=None, wishes=replace(options.wishes, pins=pins))
    for n_nodes in range(min(options.min_nodes, able), 1, -1):
        with suppress(ClusterError):  # such as links that connect fewer
            return best_plan(left, replace(options, min_nodes=n_nodes))
    return best_plan(left, replace(options, min_nodes=1))


def permitted_here(problem: Problem, wishes: Wishes) -> Problem:
    """As `permitted`, where nodes may be gone that the wishes exclude by name."""
    return permitted(problem, replace(wishes, excluded=tuple(name for name in wishes.excluded if is_here(problem, name))))


def is_here(problem: Problem, name: str) -> bool:
    """Whether a wish that names a node finds it."""
    return any(name == node.name or node.node_id.startswith(name) for node in problem.nodes)


def among(
    problem: Problem, memory_bytes: dict[str, int], barred: Collection[str] = (), broken: Collection[tuple[str, str]] = ()
) -> Problem:
    """The starter and those workers that offer memory now and are not barred. Links between the pairs `broken` lead nowhere."""
    workers = [
        replace(node, memory_bytes=memory_bytes[node.node_id])
        for node in problem.nodes[1:]
        if node.node_id in memory_bytes and node.node_id not in barred
    ]
    nodes = (problem.nodes[0], *workers)
    links = problem.links
    if isinstance(links, LinkTable):
        links = links.among(tuple(node.node_id for node in nodes))
    if broken:
        links = dict(links) | dict.fromkeys([pair for a, b in broken for pair in ((a, b), (b, a))], UNREACHABLE)
    return replace(problem, nodes=nodes, links=links)


def _by_hand(problem: Problem, split: tuple[int, ...]) -> Plan:
    """The starter first, then the others in the order of their names; who gets 0 blocks takes no part."""
    if len(split) > len(problem.nodes):
        raise UserError(
            f"--split names {len(split)} nodes, and {len(problem.nodes)} are here",
            hint="see `mdi nodes`, and start the others with `mdi node start`",
        )
    if sum(split) != (n_blocks := problem.model.n_blocks):
        typed = ",".join(str(count) for count in split)
        raise UserError(f"--split {typed} adds up to {sum(split)}, not {n_blocks}", hint=f"the model has {n_blocks} blocks")
    others = sorted(problem.nodes[1:], key=lambda node: (node.name, node.node_id))
    chosen = [problem.nodes[0], *(node for node, count in zip(others, split[1:], strict=False) if count)]
    return manual(problem, [node.node_id for node in chosen], [split[0], *(count for count in split[1:] if count)])
