"""The commands that lay a testbed's network. Pure: a list of argument lists for `ip` and `tc`, in order.

A namespace is the switch, with a bridge in it; each node has a namespace and a cable, `eth0` there and `p1`, `p2` ... here.
A cable is a veth pair, or two TAP devices between which `delay` carries frames.
"""

from __future__ import annotations

from tools.testbed.spec import BedSpec, NodeSpec

Command = tuple[str, ...]

PREFIX = "mdi-tb."  # of everything that a testbed makes outside its own directory
BRIDGE = "br0"
NODE_END = "eth0"  # not veth...: MDI takes such interfaces for those of containers

# A bucket as small as two packets makes a frame take as long as on a wire of that rate; at high rates the timer needs more.
MIN_BURST_BYTES = 2 * 1514
BURST_S = 0.00025
# A queue that a 1 MiB frame does not overflow at once, as in a home router.
MIN_QUEUE_BYTES = 256 << 10
QUEUE_S = 0.05
NETEM_PACKETS = 10_000  # in flight: 2 s of 50 Mbit/s


def bed_prefix(bed: str) -> str:
    return PREFIX + bed


def switch_namespace(bed: str) -> str:
    return bed_prefix(bed)


def node_namespace(bed: str, node: str) -> str:
    return f"{bed_prefix(bed)}.{node}"


def belongs(namespace: str, bed: str | None) -> bool:
    """Whether a namespace (or a control group) is one of this testbed's; of any testbed's when `bed` is None."""
    if bed is None:
        return namespace.startswith(PREFIX)
    return namespace == bed_prefix(bed) or namespace.startswith(f"{bed_prefix(bed)}.")


def port(spec: BedSpec, node: NodeSpec) -> str:
    """The switch's end of a node's cable."""
    return f"p{1 + spec.index(node.name)}"


def namespaces(spec: BedSpec) -> list[Command]:
    """The switch and the nodes, without cables."""
    switch = switch_namespace(spec.name)
    commands: list[Command] = [
        ("ip", "netns", "add", switch),
        # Snooping would hold back multicast until somebody has asked for it, and mDNS asks once.
        ("ip", "-n", switch, "link", "add", "name", BRIDGE, "type", "bridge", "mcast_snooping", "0", "stp_state", "0"),
        ("ip", "-n", switch, "link", "set", BRIDGE, "up"),
    ]
    for node in spec.nodes:
        namespace = node_namespace(spec.name, node.name)
        commands += [("ip", "netns", "add", namespace), ("ip", "-n", namespace, "link", "set", "lo", "up")]
    return commands


def veth(spec: BedSpec, node: NodeSpec) -> list[Command]:
    """A cable without delay. The two ends of a delayed one are made by `delay`."""
    namespace, switch = node_namespace(spec.name, node.name), switch_namespace(spec.name)
    peer = ("peer", "name", port(spec, node), "netns", switch)
    return [("ip", "link", "add", "name", NODE_END, "netns", namespace, "type", "veth", *peer)]


def plug(spec: BedSpec, node: NodeSpec) -> list[Command]:
    """Addresses the node's end, and puts the other into the bridge."""
    namespace, switch, far = node_namespace(spec.name, node.name), switch_namespace(spec.name), port(spec, node)
    address = f"{spec.address(node)}/{spec.subnet.prefixlen}"
    return [
        # No link-local IPv6: its address is tentative for a second or two, in which a daemon would find only half of its network.
        ("ip", "-n", switch, "link", "set", far, "addrgenmode", "none"),
        ("ip", "-n", switch, "link", "set", far, "master", BRIDGE, "up"),
        ("ip", "-n", namespace, "link", "set", NODE_END, "addrgenmode", "none"),
        ("ip", "-n", namespace, "address", "add", address, "dev", NODE_END),
        ("ip", "-n", namespace, "link", "set", NODE_END, "up"),
    ]


def shape(spec: BedSpec, node: NodeSpec, *, netem: bool) -> list[Command]:
    """Rates of both directions, and with `netem` the delay too. May be repeated with other rates."""
    namespace, switch = node_namespace(spec.name, node.name), switch_namespace(spec.name)
    ends = ((namespace, NODE_END, node.up_mbit), (switch, port(spec, node), node.down_mbit))
    return [command for where, device, mbit in ends for command in _qdiscs(where, device, mbit, node if netem else None)]


def _qdiscs(namespace: str, device: str, mbit: float | None, delayed: NodeSpec | None) -> list[Command]:
    start = ("tc", "-n", namespace, "qdisc", "replace", "dev", device)
    if delayed is None or not delayed.delayed:
        return [] if mbit is None else [(*start, "root", "handle", "1:", *_tbf(mbit))]
    # netem delays by delay ± jitter; ours is delay to delay + 2 half-jitters.
    half_ms = delayed.jitter_ms / 2
    late = ("netem", "limit", str(NETEM_PACKETS), "delay", f"{delayed.delay_ms + half_ms:g}ms", f"{half_ms:g}ms")
    commands: list[Command] = [(*start, "root", "handle", "1:", *late)]
    if mbit is not None:
        commands.append((*start, "parent", "1:1", "handle", "10:", *_tbf(mbit)))
    return commands


def _tbf(mbit: float) -> Command:
    bytes_per_s = mbit * 1e6 / 8
    burst = max(MIN_BURST_BYTES, round(bytes_per_s * BURST_S))
    limit = max(MIN_QUEUE_BYTES, round(bytes_per_s * QUEUE_S))
    return ("tbf", "rate", f"{round(mbit * 1e6)}bit", "burst", f"{burst}b", "limit", f"{limit}b")
