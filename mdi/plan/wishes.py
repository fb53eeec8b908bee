"""What a person may demand of a plan: which nodes take part, and which blocks lie where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mdi.errors import NoRoom, UserError
from mdi.plan.costs import LinkTable, NodeCost, Problem
from mdi.plan.plan import BlockRange
from mdi.plan.text import counted


@dataclass(frozen=True, slots=True)
class Pin:
    """These blocks lie on the node of this name (or id, or the beginning of an id). Two pins of one node mean all between them too."""

    node: str
    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class Wishes:
    """`excluded` are names of nodes, as in a pin. `mains_only`: no node takes part that says it runs on battery.

    A starter that is left out so holds no blocks: embedding and head stay where the conversation is.
    """

    pins: tuple[Pin, ...] = ()
    excluded: tuple[str, ...] = ()
    mains_only: bool = False

    def __bool__(self) -> bool:
        return bool(self.pins or self.excluded or self.mains_only)


NO_WISHES = Wishes()


def permitted(problem: Problem, wishes: Wishes) -> Problem:
    """The problem without the nodes that must not take part. Raises UserError for a name that is no node's."""
    barred = {find(problem, name).node_id for name in wishes.excluded}
    if wishes.mains_only:
        barred |= {node.node_id for node in problem.nodes if node.on_battery}
    if not barred:
        return problem
    starter, workers = problem.nodes[0], problem.nodes[1:]
    if starter.node_id in barred:
        starter = replace(starter, memory_bytes=min(starter.memory_bytes, problem.starter.bytes))
    nodes = (starter, *(node for node in workers if node.node_id not in barred))
    links = problem.links
    if isinstance(links, LinkTable):
        links = links.among(tuple(node.node_id for node in nodes))
    return replace(problem, nodes=nodes, links=links)


def pinned(problem: Problem, pins: Sequence[Pin]) -> dict[int, BlockRange]:
    """The blocks that each node must hold, by the node's index: one run each.

    Raises UserError for blocks that the model does not have or that two nodes are to hold, NoRoom for more than the node can hold.
    """
    found: dict[int, BlockRange] = {}
    for pin in pins:
        node = find(problem, pin.node)
        index, blocks = problem.index(node.node_id), pin.blocks
        if not len(blocks) or blocks.stop > problem.model.n_blocks:
            last = problem.model.n_blocks - 1
            raise UserError(f"blocks {text_of(blocks)} are pinned to {node.name}, and the model has 0-{last}", hint="see --pin")
        if index in found:
            blocks = BlockRange(min(blocks.start, found[index].start), max(blocks.stop, found[index].stop))
        found[index] = blocks if index else BlockRange(0, blocks.stop)  # the starter's blocks are the first ones
    by_start = sorted(found.items(), key=lambda item: item[1].start)
    for (one, first), (other, second) in pairwise(by_start):
        if second.start < first.stop:
            names = f"{problem.nodes[one].name} and {problem.nodes[other].name}"
            raise UserError(
                f"block {second.start} is pinned to both {names}",
                hint="a node holds one run of blocks, and the starter's begins at 0",
            )
    for index, blocks in found.items():
        if len(blocks) > (limit := problem.block_limit(index)):
            name = problem.nodes[index].name
            raise NoRoom(
                f"{name} cannot hold the pinned blocks {text_of(blocks)}: it has room for {counted(limit, 'block')}",
                hint=f"pin fewer blocks to {name}, lower --ctx, or take a smaller --quant",
            )
    return found


def starter_min_blocks(problem: Problem, pins: Sequence[Pin]) -> int:
    """The starter keeps at least one block, unless it cannot hold any or the first one is pinned elsewhere."""
    starter = problem.nodes[0]
    elsewhere = any(pin.blocks.start == 0 and find(problem, pin.node) is not starter for pin in pins)
    return 1 if problem.block_limit(0) > 0 and not elsewhere else 0


def find(problem: Problem, name: str) -> NodeCost:
    """The node of this name, or whose id begins so. Raises UserError where there is none, or more than one."""
    named = [node for node in problem.nodes if name in (node.name, node.node_id)]
    found = named or [node for node in problem.nodes if name and node.node_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(node.name for node in problem.nodes[:8])
    if not found:
        raise UserError(f"no node is called {name[:40]!r}", hint=f"one of: {names}")
    raise UserError(f"{len(found)} nodes are called {name[:40]!r}", hint="give the beginning of its id, see `mdi nodes --json`")


def text_of(blocks: BlockRange) -> str:
    """0-3, or 5."""
    return str(blocks.start) if len(blocks) == 1 else f"{blocks.start}-{blocks.stop - 1}"
