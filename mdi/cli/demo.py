"""`mdi demo`: three nodes on this machine answer questions with the built-in model."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.progress import shown
from mdi.cli.terminal import note, on_terminal, say

if TYPE_CHECKING:
    from mdi.cli.daemons import Daemon
    from mdi.model.kv import KvType
    from mdi.pipeline.starter import Starter

NODES = ("desk", "kitchen", "attic")
FINDING_TIMEOUT_S = 10.0  # mDNS takes below 2 s; after this it does not work on this network
LISTENING_S = 2.0  # for one look


class Question(NamedTuple):
    """The answer is right when it contains `expected` as a whole word."""

    text: str
    expected: str

    def is_answered_by(self, answer: str) -> bool:
        return re.search(rf"(?<![\w-]){re.escape(self.expected)}(?![\w-])", answer, re.IGNORECASE) is not None


CONVERSATIONS = (
    (Question("What is 7 + 5?", "12"),),
    (Question("What is the capital of France?", "Paris"), Question("And of Italy?", "Rome")),  # what went before gives it sense
    (Question("Spell cat.", "c-a-t"), Question("What does a cow say?", "moo")),
    (Question("My name is Anna.", "Anna"), Question("What is my name?", "Anna")),
)


def demo(
    no_input: Annotated[
        bool, typer.Option("--no-input", help="End after the questions; exit code 0 if all went well, else 1.")
    ] = False,
    kv_type: given.KvType = "auto",
) -> None:
    """See it work: three nodes on this machine share the built-in model."""
    from mdi.cli.starting import parse_kv_type

    raise typer.Exit(run_async(_demo(parse_kv_type(kv_type), chat=not no_input and on_terminal())))


async def _demo(kv_type: KvType | None, *, chat: bool) -> int:
    from mdi.cli.conversation import Conversation, Wishes
    from mdi.cli.daemons import cluster
    from mdi.cli.inputs import open_inputs
    from mdi.cli.render import plan_text, steps_table
    from mdi.cli.repl import talk
    from mdi.pipeline.api import StarterOptions
    from mdi.pipeline.starter import open_starter
    from mdi.plan.plan import Objective

    with tempfile.TemporaryDirectory(prefix="mdi-demo-", ignore_cleanup_errors=True) as directory:
        async with AsyncExitStack() as stack:
            say(f"Starting {len(NODES)} nodes on this machine, as if they were three devices ...")
            daemons = await stack.enter_async_context(cluster(Path(directory), NODES))
            peers = await _meet(daemons)
            # One device alone would be fastest for so small a model; this plan keeps all three busy.
            options = StarterOptions(
                kv_type=kv_type, objective=Objective.THROUGHPUT, min_nodes=len(NODES), peers=peers, discovery=not peers
            )
            with shown() as on_progress:
                starter = await stack.enter_async_context(open_starter(options, daemons[0].home, on_progress))
            say("\nThe model is split over all of them:\n")
            say(plan_text(starter.problem, starter.plan) + "\n")
            right, asked = await _quiz(starter)
            steps = await starter.stage_steps()
            say("\n" + steps_table(starter.plan, steps))
            worked = [name for name in NODES if steps.get(name, 0) > 0]
            good = right == asked and len(worked) == len(NODES)
            say(f"\n{right} of {asked} answers are right; {len(worked)} of {len(NODES)} nodes did work.")
            if chat:
                say("Now it is your turn: /help lists what you can do, /quit ends it.\n")
                await talk(Conversation(starter, Wishes()), open_inputs(daemons[0].home.history_path))
            return 0 if good else 1


async def _meet(daemons: Sequence[Daemon]) -> tuple[str, ...]:
    """Waits until the first node's device sees all others by mDNS. Returns their addresses if it never does, else nothing."""
    from mdi.pipeline.survey import list_nodes

    home, wanted = daemons[0].home, {daemon.node.node_id for daemon in daemons}
    try:
        async with asyncio.timeout(FINDING_TIMEOUT_S):
            while True:
                found = await list_nodes(home, (), discovery=True, wait_s=LISTENING_S)
                if wanted <= {row.node_id for row in found.rows if row.reachable}:
                    break
    except TimeoutError:
        note("mDNS does not work on this network: the nodes are told each other's addresses, as --peer would do")
        return tuple(daemon.address for daemon in daemons[1:])
    for daemon in daemons:
        say(f"  {daemon.node.name:<8} {daemon.node.node_id}  port {daemon.node.port}")
    say("They found each other by mDNS.")
    return ()


async def _quiz(starter: Starter) -> tuple[int, int]:
    """Asks all questions. Returns how many were answered right, and how many there were."""
    from mdi.cli.conversation import Conversation, Wishes
    from mdi.cli.render import answer_line
    from mdi.pipeline.api import Answer

    marks = []
    for questions in CONVERSATIONS:
        conversation = Conversation(starter, Wishes())
        for question in questions:
            say(f"> {question.text}")
            answer = [event async for event in conversation.ask(question.text) if isinstance(event, Answer)][-1]
            marks.append(question.is_answered_by(answer.text))
            say(f"{'✓' if marks[-1] else '✗'} {answer.text}")
            note(f"  {answer_line(answer, starter.plan)}")
    return sum(marks), len(marks)
