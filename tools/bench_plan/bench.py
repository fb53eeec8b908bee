"""What all parts share: models, packs, testbeds, tables, and what was found."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdi.model.quantise import Quant
from mdi.plan.explain import table
from tools.bench_plan.starter import RingStarter
from tools.make_checkpoint import make_checkpoint
from tools.shapes import Shape
from tools.testbed.bed import Testbed
from tools.testbed.spec import read_spec

BEDS = Path(__file__).parent / "beds"
CTX = 512  # prompts and answers here are short; KV of more would only take memory
WARM_UP_TOKENS = 8


class PlanBench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results: dict[str, Any] = {}
        self._directory: Path = args.directory
        self._directory.mkdir(parents=True, exist_ok=True)

    def model(self, name: str, shape: Shape) -> Path:
        """The checkpoint of that name; made when it is first asked for."""
        path = self._directory / name
        if not path.exists():
            make_checkpoint(shape, path)
        return path

    def packed(self, model: Path, quant: Quant) -> Path:
        """The directory of packs for that checkpoint, converted outside of any testbed, where there are no limits."""
        return self.packed_together(f"{model.name}-packs", [model], quant)

    def packed_together(self, name: str, models: Sequence[Path], quant: Quant) -> Path:
        """The same for several."""
        packs = self._directory / name
        packs.mkdir(exist_ok=True)
        for model in models:
            command = [sys.executable, "-m", "tools.bench.convert", str(model), str(packs), "--quant", quant.value]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return packs

    @contextmanager
    def bed(self, name: str, packs: Path) -> Iterator[Testbed]:
        """The testbed of `beds/NAME.toml`, its packs shared by all nodes."""
        with Testbed(replace(read_spec(BEDS / f"{name}.toml"), packs=packs)) as bed:
            yield bed

    @contextmanager
    def starter(self, bed: Testbed, model: Path, quant: Quant, *, slots: int = 1) -> Iterator[RingStarter]:
        with RingStarter(bed, model, quant=quant, ctx=CTX, slots=slots) as starter:
            yield starter

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def show(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.say(f"\n{title}\n\n{table(headings, rows)}")

    def found(self, what: str, value: object) -> None:
        """For --json."""
        self.results[what] = value
