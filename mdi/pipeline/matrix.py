"""The links of a cluster, every ordered pair: for the planner, and for `mdi links`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mdi.cluster.home import Home
from mdi.cluster.interfaces import read_interfaces
from mdi.errors import MdiError
from mdi.node.links import DECODE_BYTES, PREFILL_BYTES, Link, LinkTimes
from mdi.pipeline.api import OnProgress, Progress
from mdi.pipeline.links import Known, LinkMemory, measure_pairs
from mdi.pipeline.rounds import Pair, pair_of
from mdi.pipeline.survey import House, Neighbour, open_house

LABEL = "measuring the links"
HERE = "here"  # the device of this process, whatever addresses its nodes are known by


@dataclass(frozen=True, slots=True)
class Matrix:
    """`nodes` are (id, name), this device first. Each pair is known, or what was raised when it was measured."""

    nodes: tuple[tuple[str, str], ...]
    pairs: dict[Pair, Known | MdiError]

    def times(self, sender: str, receiver: str) -> LinkTimes | None:
        """One direction; None when the two cannot reach each other."""
        found = self.pairs[pair_of(sender, receiver)]
        if isinstance(found, MdiError):
            return None
        return found.link.there if sender < receiver else found.link.back

    def ordered(self) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """(sender, receiver) for every two different nodes."""
        return itertools.permutations(self.nodes, 2)

    def problems(self) -> list[str]:
        """A sentence for each pair that could not be measured."""
        names = dict(self.nodes)
        return [
            f"{names[a]} and {names[b]} cannot reach each other: {found}"
            for (a, b), found in self.pairs.items()
            if isinstance(found, MdiError)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "decode_bytes": DECODE_BYTES,
            "prefill_bytes": PREFILL_BYTES,
            "nodes": [{"node_id": node_id, "name": name} for node_id, name in self.nodes],
            "links": [self._link_json(*sender, *receiver) for sender, receiver in self.ordered()],
        }

    def _link_json(self, sender: str, sender_name: str, receiver: str, receiver_name: str) -> dict[str, Any]:
        ends = {"from": sender, "from_name": sender_name, "to": receiver, "to_name": receiver_name}
        found, times = self.pairs[pair_of(sender, receiver)], self.times(sender, receiver)
        if times is None or isinstance(found, MdiError):
            return ends | {"problem": str(found)}
        return ends | {
            "round_trip_s": times.round_trip_s,
            "decode_s": times.decode_s,
            "prefill_s": times.prefill_s,
            "decode_bytes_per_s": DECODE_BYTES / times.decode_s,
            "prefill_bytes_per_s": PREFILL_BYTES / times.prefill_s,
            "age_s": found.age_s,
        }


async def survey_links(
    home: Home, peers: tuple[str, ...], *, discovery: bool, wait_s: float, refresh: bool, on_progress: OnProgress
) -> tuple[Matrix, list[str]]:
    """The matrix of the cluster that answers now, and sentences about nodes and pairs that do not."""
    async with open_house(home, peers, discovery=discovery, wait_s=wait_s) as house:
        matrix = await measure_matrix(house, house.others, refresh, on_progress)
        left_out = [f"{row.name} ({row.address}) is left out: {row.problem}" for row in house.problems]
        return matrix, left_out + matrix.problems()


async def measure_matrix(house: House, workers: Sequence[Neighbour], refresh: bool, on_progress: OnProgress) -> Matrix:
    """Every pair of this device and `workers`: from memory where it is fresh, else measured between the two and remembered."""
    memory = LinkMemory(house.home.profiles_path / "links.json")
    by_id = {neighbour.info.node_id: neighbour for neighbour in workers}
    pairs = [pair_of(a, b) for a, b in itertools.combinations((house.node_id, *by_id), 2)]
    known: dict[Pair, Known | MdiError] = {} if refresh else {**memory.recall(pairs)}
    unknown = [pair for pair in pairs if pair not in known]

    async def measure(pair: Pair) -> Link:
        """`there` of the answer is from the pair's first node to its second."""
        first, second = pair
        if second == house.node_id:
            return (await by_id[first].peer.link_from_here()).reversed
        if first == house.node_id:
            return await by_id[second].peer.link_from_here()
        return await by_id[first].peer.link_to(by_id[second].peer.address)

    if unknown:
        devices = {house.node_id: HERE} | {node_id: device(each.member.addresses) for node_id, each in by_id.items()}
        on_progress(Progress("links", LABEL, 0, len(unknown)))
        found = await measure_pairs(
            unknown, measure, devices.__getitem__, lambda n: on_progress(Progress("links", LABEL, n, len(unknown)))
        )
        memory.remember({pair: link for pair, link in found.items() if isinstance(link, Link)})
        known |= {pair: Known(link, 0.0) if isinstance(link, Link) else link for pair, link in found.items()}
    own_name = house.own.info.name if house.own else "this device"
    names = [(house.node_id, own_name), *((node_id, each.info.name) for node_id, each in by_id.items())]
    return Matrix(tuple(names), {pair: known[pair] for pair in pairs})


def device(addresses: Sequence[str]) -> str:
    """What tells the device of a node from others: its first address, or HERE for one of this device's own."""
    own = {address for interface in read_interfaces() for address in interface.addresses}
    return HERE if own & set(addresses) else addresses[0]
