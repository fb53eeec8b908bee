"""`mdi`: the commands, and what becomes of their errors.

Exit codes: 0 done, 1 the cluster could not, 2 what was typed is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from mdi import __version__
from mdi.cli import demo, library, links, models, nodes, plan, prepare, profile, run, serve, simulate
from mdi.cli.failures import report
from mdi.cli.logs import log_to_stderr
from mdi.cli.terminal import never_fail_to_encode, say

app = typer.Typer(
    name="mdi",
    help="Run one language model across the devices you already own, privately, on your own network.",
    epilog="Begin with `mdi node start` on each device, then `mdi run` on any of them; `mdi demo` shows it all on this one.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no import of rich: 50 ms on a laptop, half a second on a Pi
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
node_app = typer.Typer(help="Make this device a node, or end that.", no_args_is_help=True, rich_markup_mode=None)
node_app.command("start")(nodes.start)
node_app.command("stop")(nodes.stop)
node_app.command("profile")(profile.profile)
node_app.command("prepare", hidden=True)(prepare.prepare)  # what installers call
app.add_typer(node_app, name="node")
models_app = typer.Typer(
    help="Models: which there are, which are here, what they take.", no_args_is_help=True, rich_markup_mode=None
)
models_app.command("list")(library.list_models)
models_app.command("pull")(library.pull)
models_app.command("rm")(library.remove)
models_app.command("search")(library.search)
models_app.command("inspect")(models.inspect)
app.add_typer(models_app, name="models")
app.command("nodes")(nodes.nodes)
app.command("links")(links.links)
app.command("run")(run.run)
app.command("serve")(serve.serve)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("demo")(demo.demo)


@dataclass(slots=True)
class Settings:
    """What stands before the command's name."""

    debug: bool = False


def _print_version(asked: bool) -> None:
    if asked:
        say(f"mdi {__version__}")
        raise typer.Exit


@app.callback()
def before(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show tracebacks.")] = False,
) -> None:
    context.obj.debug = debug
    log_to_stderr(debug=debug, daemon=context.invoked_subcommand in ("node", "serve"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Always ends in SystemExit."""
    never_fail_to_encode()
    settings = Settings()
    try:
        app(args=arguments, prog_name="mdi", obj=settings)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error, debug=settings.debug))


if __name__ == "__main__":
    main()
