"""python -m tools.testbed up FILE | run FILE -- COMMAND | exec FILE -- COMMAND | set FILE NODE | down | check

Exit code 77: this machine, or this user, cannot have a testbed; the reason is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mdi.cli.failures import report
from mdi.errors import MdiError, UserError
from mdi.plan.text import binary_bytes
from tools.testbed.bed import Testbed, standing, unwinding
from tools.testbed.leftovers import beds, locked, remove
from tools.testbed.machine import CannotBuild, this_machine
from tools.testbed.spec import BedSpec, NodeSpec, read_spec

COMMAND_END_S = 5.0  # after Ctrl-C, which the command got too
HEADINGS = ("node", "address", "cpu", "on", "memory", "Mbit/s up/down", "delay", "process", "node id")


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        with unwinding():
            return int(args.call(args))
    except CannotBuild as error:
        print(f"skipped: {error}{f' ({error.hint})' if error.hint else ''}", file=sys.stderr)
        return error.exit_code
    except MdiError as error:
        return report(error, debug=False)
    except KeyboardInterrupt as error:
        return report(error, debug=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.testbed", description="A cluster on this machine. See docs/testbed.md."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="build a testbed and leave it standing")
    run = commands.add_parser("run", help="build a testbed, run a command on its starter, take it down")
    inside = commands.add_parser("exec", help="run a command in a testbed that is up")
    change = commands.add_parser("set", help="change a node of a testbed that is up")
    down = commands.add_parser("down", help="take down the named testbeds, or all")
    check = commands.add_parser("check", help="what this machine allows")
    for each, call in ((up, _up), (run, _run), (inside, _exec), (change, _set), (down, _down), (check, _check)):
        each.set_defaults(call=call)
    for each in (up, run, inside, change):
        each.add_argument("file", type=Path, help="the testbed's TOML file")
    for each in (run, inside):
        each.add_argument("--node", help="where the command runs; the first node when left out")
        each.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    change.add_argument("node")
    change.add_argument("--cpu", type=float, help="another share of a core")
    change.add_argument("--rate", type=float, metavar="MBIT", help="another rate, both ways")
    down.add_argument("names", nargs="*", metavar="NAME")
    return parser


def _up(args: argparse.Namespace) -> int:
    with Testbed(read_spec(args.file)) as bed:
        show(bed)
        bed.keep()
    return 0


def _run(args: argparse.Namespace) -> int:
    with Testbed(read_spec(args.file)) as bed:
        show(bed, file=sys.stderr)
        return _wait(bed.popen(args.command, args.node))


def _exec(args: argparse.Namespace) -> int:
    return _wait(standing(read_spec(args.file)).popen(args.command, args.node))


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            return process.wait(COMMAND_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise KeyboardInterrupt from None


def _set(args: argparse.Namespace) -> int:
    bed = standing(read_spec(args.file))
    if args.cpu is None and args.rate is None:
        raise UserError("nothing to set", hint="--cpu 0.5, --rate 100")
    if args.cpu is not None:
        bed.set_cpu(args.node, args.cpu)
    if args.rate is not None:
        bed.set_rate(args.node, args.rate)
    return 0


def _down(args: argparse.Namespace) -> int:
    for name in args.names or sorted(beds()):
        with locked(name):
            remove(name)
        print(f"testbed {name} is gone", file=sys.stderr)
    return 0


def _check(_: argparse.Namespace) -> int:
    machine = this_machine()
    for what, value in machine.to_json().items():
        print(f"{what}: {value if isinstance(value, str) else 'yes' if value else 'no'}")
    return 0 if machine.refusal is None else CannotBuild.exit_code


def show(bed: Testbed, file: object = None) -> None:
    """The nodes as they run."""
    table = Table(*HEADINGS, title=f"testbed {bed.spec.name}; the nodes met by {bed.met_by}")
    for node in bed.spec.nodes:
        running = bed.home(node.name).running()
        table.add_row(*_cells(bed.spec, node), str(running.pid) if running else "", running.node_id[:12] if running else "")
    Console(file=file or sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)  # type: ignore[arg-type]


def _cells(spec: BedSpec, node: NodeSpec) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "free" if value is None else f"{value:g}"

    delay = f"{node.delay_ms:g} ms" + (f" + {node.jitter_ms:g}" if node.jitter_ms else "")
    return (
        node.name,
        str(spec.address(node)),
        number(node.cpu),
        "any" if node.cores is None else ",".join(str(core) for core in node.cores),
        "free" if node.memory_bytes is None else binary_bytes(node.memory_bytes),
        f"{number(node.up_mbit)}/{number(node.down_mbit)}",
        delay if node.delayed else "none",
    )


if __name__ == "__main__":
    sys.exit(main())
