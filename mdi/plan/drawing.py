"""A plan as a picture: a token's way round the ring, where length is time.

SVG 1.1, without scripts, fonts or anything from elsewhere. Each stage is an arc as long as its part of the step, in the ring's order,
clockwise from the top; a hop is a thin grey arc. Names stand in two columns beside the ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from mdi.plan.costs import Problem
from mdi.plan.explain import NodeRow, node_rows, optimality
from mdi.plan.plan import Plan
from mdi.plan.text import binary_bytes, counted, milliseconds

WIDTH, HEIGHT = 960, 640
CENTRE_X, CENTRE_Y = WIDTH / 2, HEIGHT / 2 + 26
OUTER, INNER, HOP_OUTER, HOP_INNER = 190, 130, 166, 154  # radii of stages and of hops
LABEL_X = 250  # of the columns, from the centre
LABEL_GAP = 46  # between two labels of a column: two lines of text and some air
MOST_LABELS = 10  # in a column: more would leave the picture
LEAST_ANGLE = 0.006  # radians: a stage or hop is never invisible
GAP_ANGLE = 0.004  # between neighbours
# Ten hues of one lightness, told apart by most colour-blind people (Okabe and Ito's order, lightened), then again from the start.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a6d3b", "#6a51a3", "#4d7c0f", "#475569")
INK, FAINT, PAPER = "#1f2937", "#6b7280", "#ffffff"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class _Arc:
    """`row` None: a hop."""

    start: float  # radians, clockwise from the top
    stop: float
    row: NodeRow | None
    colour: str

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


def svg(problem: Problem, plan: Plan, title: str) -> str:
    """The picture as text, well-formed whatever the names are."""
    rows = node_rows(problem, plan)
    arcs = _arcs(rows)
    root = ET.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH), "height": str(HEIGHT)},
    )
    root.set("font-family", FONT)
    root.set("role", "img")
    ET.SubElement(root, "title").text = _clean(title)
    ET.SubElement(root, "rect", {"width": str(WIDTH), "height": str(HEIGHT), "fill": PAPER})
    _text(root, CENTRE_X, 38, _short(title, 60), size=22, weight="600", anchor="middle")
    proven = optimality(plan)
    _text(root, CENTRE_X, 62, _short(f"bounded by {plan.prediction.bottleneck}", 100), size=13, colour=FAINT, anchor="middle")
    for arc in arcs:
        _draw(root, arc)
    _centre(root, problem, plan)
    for side in (1, -1):
        _labels(root, [arc for arc in arcs if arc.row is not None and (math.sin(arc.middle) >= 0) == (side > 0)], side)
    if proven:
        _text(root, CENTRE_X, HEIGHT - 18, proven, size=12, colour=FAINT, anchor="middle")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _arcs(rows: list[NodeRow]) -> list[_Arc]:
    """Angles in proportion to time, none below LEAST_ANGLE."""
    parts = [part for row in rows for part in ((row.stage_s, row), (row.hop_s, None)) if part[0] is not None]
    total_s = sum(seconds for seconds, _ in parts if seconds is not None) or 1.0
    wanted = [max(LEAST_ANGLE + GAP_ANGLE, 2 * math.pi * (seconds or 0.0) / total_s) for seconds, _ in parts]
    scale = 2 * math.pi / sum(wanted)
    arcs, at, stage = [], 0.0, 0
    for angle, (_, row) in zip(wanted, parts, strict=True):
        gap = min(GAP_ANGLE, angle * scale / 4) if len(parts) > 1 else 0.0
        colour = COLOURS[stage % len(COLOURS)] if row is not None else FAINT
        arcs.append(_Arc(at + gap / 2, at + angle * scale - gap / 2, row, colour))
        stage += row is not None
        at += angle * scale
    return arcs


def _draw(root: ET.Element, arc: _Arc) -> None:
    outer, inner = (OUTER, INNER) if arc.row is not None else (HOP_OUTER, HOP_INNER)
    if arc.stop - arc.start > 2 * math.pi - 1e-6:  # a path cannot end where it began
        middle, width = str((outer + inner) / 2), str(outer - inner)
        circle = {"cx": f"{CENTRE_X:g}", "cy": f"{CENTRE_Y:g}", "r": middle, "fill": "none", "stroke": arc.colour}
        ET.SubElement(root, "circle", circle | {"stroke-width": width})
        return
    large = int(arc.stop - arc.start > math.pi)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (
        _point(arc.start, outer), _point(arc.stop, outer), _point(arc.stop, inner), _point(arc.start, inner),
    )  # fmt: skip
    path = (
        f"M{x0:.2f} {y0:.2f} A{outer} {outer} 0 {large} 1 {x1:.2f} {y1:.2f} "
        f"L{x2:.2f} {y2:.2f} A{inner} {inner} 0 {large} 0 {x3:.2f} {y3:.2f} Z"
    )
    ET.SubElement(root, "path", {"d": path, "fill": arc.colour})


def _point(angle: float, radius: float) -> tuple[float, float]:
    return CENTRE_X + radius * math.sin(angle), CENTRE_Y - radius * math.cos(angle)


def _centre(root: ET.Element, problem: Problem, plan: Plan) -> None:
    times = plan.prediction
    lines = (
        (f"{times.decode_tokens_per_s:.1f} tok/s", 30, "600", INK),
        (f"{milliseconds(times.decode_step_s)} a token", 14, "400", FAINT),
        (f"{times.throughput_tokens_per_s:.1f} tok/s when full", 14, "400", FAINT),
        (f"first token {milliseconds(times.ttft_s)}", 14, "400", FAINT),
        (f"({counted(problem.model.prompt_tokens, 'prompt token')})", 12, "400", FAINT),
    )
    y = CENTRE_Y - 34
    for text, size, weight, colour in lines:
        _text(root, CENTRE_X, y, text, size=size, weight=weight, colour=colour, anchor="middle")
        y += 24 if size > 20 else 20


def _labels(root: ET.Element, arcs: list[_Arc], side: int) -> None:
    """One column: at the height of the arcs where there is room, pushed apart where there is not; the longest stages of too many."""
    shown = sorted(
        sorted(arcs, key=lambda arc: arc.start - arc.stop)[:MOST_LABELS], key=lambda arc: _point(arc.middle, OUTER)[1]
    )
    ys = _spread([_point(arc.middle, OUTER)[1] for arc in shown])
    for arc, y in zip(shown, ys, strict=True):
        row = arc.row
        if row is None:
            continue
        x, (arc_x, arc_y) = CENTRE_X + side * LABEL_X, _point(arc.middle, OUTER + 3)
        elbow = CENTRE_X + side * (LABEL_X - 16)
        points = f"{arc_x:.1f},{arc_y:.1f} {elbow:.1f},{y:.1f} {x - side * 5:.1f},{y:.1f}"
        ET.SubElement(root, "polyline", {"points": points, "fill": "none", "stroke": arc.colour, "stroke-width": "1.2"})
        anchor = "start" if side > 0 else "end"
        _text(root, x, y - 2, _short(row.name), size=15, weight="600", anchor=anchor)
        blocks = (
            "no blocks"
            if row.first_block is None
            else f"block{'' if row.first_block == row.last_block else 's'} {row.blocks_text}"
        )
        told = f"{blocks} · {milliseconds(row.stage_s)} · {binary_bytes(row.used_bytes)}"
        _text(root, x, y + 15, told, size=12, colour=FAINT, anchor=anchor)
    if len(arcs) > len(shown):
        told = f"and {counted(len(arcs) - len(shown), 'more stage')}"
        _text(root, CENTRE_X + side * LABEL_X, HEIGHT - 40, told, size=12, colour=FAINT, anchor="start" if side > 0 else "end")


def _spread(ys: list[float]) -> list[float]:
    """Ascending heights at least LABEL_GAP apart, as near to the wanted ones as pushing from both ends leaves them."""
    top, bottom = 100.0, HEIGHT - 84.0
    placed: list[float] = []
    for y in ys:
        placed.append(max(y, top, placed[-1] + LABEL_GAP if placed else top))
    limit = bottom
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - LABEL_GAP
    return placed


def _text(
    root: ET.Element, x: float, y: float, text: str, *, size: int, weight: str = "400", colour: str = INK, anchor: str
) -> None:
    style = {"font-size": str(size), "font-weight": weight, "fill": colour, "text-anchor": anchor}
    ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = _clean(text)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _clean(text: str) -> str:
    """Without characters that XML does not know: names come from other devices."""
    return "".join(c for c in text if c in "\t\n" or 0x20 <= ord(c) < 0xD800 or 0xE000 <= ord(c) < 0xFFFE or ord(c) > 0xFFFF)
