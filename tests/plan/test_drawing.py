"""The picture: read back by a parser that we did not write, and looked at by number."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from mdi.plan.drawing import HEIGHT, LABEL_GAP, WIDTH, _spread, svg
from mdi.plan.plan import Objective
from mdi.plan.solve import manual, solve

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def swept(path: str) -> float:
    """The angle of an arc, from its two outer corners and its large-arc flag."""
    x0, y0, _, _, large, x1, y1 = map(float, re.match(r"M(\S+) (\S+) A(\S+) (\S+) 0 (\d) 1 (\S+) (\S+)", path).groups())
    cx, cy = WIDTH / 2, HEIGHT / 2 + 26
    angle = (math.atan2(x1 - cx, cy - y1) - math.atan2(x0 - cx, cy - y0)) % (2 * math.pi)
    assert (angle > math.pi) == bool(large)
    return angle


def test_the_ring_is_one_round_and_arcs_are_as_long_as_they_take(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15), hop_s=0.02)
    plan = manual(problem, ["id-laptop", "id-pi"], [16, 16])
    root = ET.fromstring(svg(problem, plan, "llama on two devices"))
    angles = [swept(path.get("d")) for path in root.iter(f"{SVG}path")]
    times = plan.prediction
    expected = [times.stage_decode_s[0], times.hop_decode_s[0], times.stage_decode_s[1], times.hop_decode_s[1]]
    assert angles == pytest.approx([2 * math.pi * part / times.decode_step_s for part in expected], abs=0.005)
    shown = " ".join(texts(root))
    for part in ("llama on two devices", "laptop", "pi", "blocks 0–15", "blocks 16–31", "tok/s", "first token"):
        assert part in shown


def test_one_device_is_a_whole_circle(home):
    problem = home(("laptop", 8, 3))
    root = ET.fromstring(svg(problem, solve(problem, Objective.LATENCY), "alone"))
    assert len(list(root.iter(f"{SVG}circle"))) == 1
    assert not list(root.iter(f"{SVG}path"))


@pytest.mark.parametrize("name", ['<script>&"', "π\x00\x1b[31m\ud800", "x" * 200])
def test_names_of_any_kind_are_text(home, name):
    problem = home(("laptop", 2, 3), ("pi", 4, 15))
    problem = replace(problem, nodes=(replace(problem.nodes[0], name=name), problem.nodes[1]))
    root = ET.fromstring(svg(problem, solve(problem, Objective.LATENCY), name).encode())
    assert all(len(text) <= 100 for text in texts(root))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg",
        "title",
        "rect",
        "text",
        "path",
        "polyline",
        "circle",
    }


def test_many_stages_stay_in_the_picture(home):
    problem = home(*[(f"pi {index}", 0.8, 10 + index % 7) for index in range(40)])
    plan = solve(problem, Objective.THROUGHPUT, min_nodes=30)
    root = ET.fromstring(svg(problem, plan, "many"))
    for element in root.iter(f"{SVG}text"):
        assert 0 < float(element.get("x")) < WIDTH
        assert 0 < float(element.get("y")) < HEIGHT
    assert any("more stage" in text for text in texts(root))


def test_labels_are_pushed_apart():
    placed = _spread([300.0, 301.0, 302.0, 560.0, 565.0])
    assert all(after - before >= LABEL_GAP for before, after in pairwise(placed))
    assert placed[0] == 300.0
