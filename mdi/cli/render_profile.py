"""A device's profile as text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdi.plan.explain import table
from mdi.plan.text import binary_bytes, counted, milliseconds

if TYPE_CHECKING:
    from mdi.profile.grid import BlockPoint
    from mdi.profile.whole import WholeProfile


def profile_text(found: WholeProfile) -> str:
    """What it is, what it can do with the model, and in what condition it is."""
    return "\n\n".join(["\n".join(_device(found)), _blocks(found), "\n".join(_condition(found))])


def _device(found: WholeProfile) -> list[str]:
    info, memory, device, disk = found.info, found.memory, found.device, found.disk
    features = f" ({' '.join(info.features)})" if info.features else ""
    where = "" if found.accelerator is None else f" on {found.accelerator.name}"
    lines = [
        f"{info.cpu}{features}, {counted(info.usable_cores, 'core')}, {info.os}",
        f"memory: {binary_bytes(memory.total_bytes)}, of which {binary_bytes(memory.available_bytes)} may be taken now "
        f"and {binary_bytes(memory.offered_bytes)} would be offered",
    ]
    if (accelerator := found.accelerator) is not None:
        size = f"{binary_bytes(accelerator.total_bytes)}, {binary_bytes(accelerator.free_bytes)} of it free"
        lines.append(f"{accelerator.device}: {accelerator.name}, {size}")
    threads = "" if found.accelerator is not None else f" with {counted(device.threads, 'thread')}"
    lines += [
        f"computes{where}{threads}: {device.tflops:.3g} TFLOPS, reads {device.read_bytes_per_s / 1e9:.3g} GB/s",
        f"disk: {binary_bytes(disk.free_bytes)} free, writes {disk.speed.write_bytes_per_s / 1e6:.0f} MB/s, "
        f"reads {disk.speed.read_bytes_per_s / 1e6:.0f} MB/s",
    ]
    return lines


def _blocks(found: WholeProfile) -> str:
    """One row for each step's shape, a column for each position."""
    points = (*found.grid.decode, *found.grid.prefill)
    positions = sorted({point.position for point in points})
    shapes = list(dict.fromkeys((point.rows, point.tokens) for point in points))
    times = {(point.rows, point.tokens, point.position): point for point in points}

    def cell(point: BlockPoint | None) -> str:
        return "" if point is None else milliseconds(point.block_s)

    rows = [
        (
            f"decode, {counted(rows, 'conversation')}" if tokens == 1 else f"prompt, {tokens} tokens",
            *(cell(times.get((rows, tokens, position))) for position in positions),
        )
        for rows, tokens in shapes
    ]
    headings = (f"{found.model}: one block of {found.n_blocks}", *(f"after {position}" for position in positions))
    whole_s = found.blocks.decode.seconds(found.n_blocks) + found.head.decode_s
    alone = f"Alone it would decode {1 / whole_s:.3g} tokens/s."
    return table(headings, rows) + f"\n{alone}"


def _condition(found: WholeProfile) -> list[str]:
    condition, load = found.condition, found.load
    heat = "not told" if condition.temperature_c is None else f"{condition.temperature_c:.0f} °C"
    if condition.throttling is None:
        slowed = "throttling not told"
    else:
        slowed = "slowed by " + ", ".join(condition.throttling) if condition.throttling else "not throttled"
    match condition.power:
        case None:
            power = "power source not told"
        case told if told.on_battery:
            power = "on battery" + ("" if told.charge is None else f", {told.charge:.0%} left")
        case _:
            power = "on mains"
    when = "now" if found.measured else "when this was measured"
    lines = [f"temperature {heat}; {slowed}; {power}"]
    share = f"others took {load.others_share:.0%} of the processors' time {when}, {load.stolen_share:.0%} was withheld by a host or quota"
    if load.loaded:
        lines.append(f"THIS DEVICE WAS LOADED: {share}. Measure again with --refresh when it is at rest.")
    else:
        lines.append(f"at rest: {share}")
    return lines
