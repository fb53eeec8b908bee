"""What all parts share: the files, the homes, and what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.engine.protocol import StageShape
from mdi.model.checkpoint import read_config
from mdi.pipeline.problem import chosen_kv_type
from tools.bench.rates import RATES, Contender
from tools.llama_cpp import available_cores
from tools.make_checkpoint import make_checkpoint
from tools.make_gguf import make_gguf
from tools.shapes import named_shape


class Bench:
    """The files that all parts share, and what was measured."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args = args
        self.shape = named_shape(args.shape, vocab=args.vocab)
        self.results: dict[str, Any] = {"cores": len(available_cores()), "shape": args.shape, "vocab": args.vocab}
        self._scratch = scratch
        self._console = Console()
        self._name = args.shape + (f"-v{args.vocab}" if args.vocab else "")
        self._key = ClusterKey.generate()
        self._directory: Path = args.directory
        self._directory.mkdir(parents=True, exist_ok=True)

    @property
    def model(self) -> Path:
        """The checkpoint; made when it is first asked for."""
        path = self._directory / self._name
        if not path.exists():
            make_checkpoint(self.shape, path, dtype=self.args.dtype)
        return path

    def gguf(self, kind: str = "q4_0") -> Path:
        """The same shape as a GGUF file; made when it is first asked for."""
        path = self._directory / f"{self._name}-{kind}.gguf"
        if not path.exists():
            make_gguf(self.shape, path, quantisation=kind)
        return path

    def home(self, name: str, *, shared_packs: bool = True) -> Path:
        """A node's directory; the starters' packs are made once and shared by all runs, unless asked otherwise."""
        home = Home(self._scratch / name)
        if not home.path.exists():
            home.create()
            self._key.save(home)
            if shared_packs:
                packs = self._directory / f"{self._name}-packs"
                packs.mkdir(exist_ok=True)
                home.packs_path.rmdir()
                home.packs_path.symlink_to(packs)
        return home.path

    def kv_bytes(self, n_blocks: int, slots: int = 1) -> int:
        """What prompt and answer of each slot leave in KV, of the type that MDI has with these weights."""
        shape = StageShape(slots, self.args.prompt + self.args.new, 1, chosen_kv_type(self.args.quant, None))
        return shape.kv_bytes(read_config(self.model), n_blocks)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def tell(self, what: str, shown: str, value: float) -> None:
        self.results[what] = value
        self.say(f"{what}: {shown}")

    def report(self, title: str, contenders: list[Contender], base: Contender) -> None:
        table = Table("", "decode tok/s", "ratio", "prefill tok/s", "ratio", title=f"{title}; ratios to {base.name}")
        rows = {}
        for contender in contenders:
            row = {}
            for what in RATES:
                row[what] = round(contender.median(what), 2)
                row[f"{what.removesuffix('_tokens_per_s')}_ratio"] = round(contender.ratio(base, what), 3)
            rows[contender.name] = row
            table.add_row(contender.name, *(str(value) for value in row.values()))
        self.results[title] = rows
        self._console.print(table)
