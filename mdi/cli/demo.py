"""`mdi demo`: three nodes on this machine answer questions with the built-in model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mdi.cli.loop import run_async
from mdi.cli.progress import shown
from mdi.cli.terminal import note, on_terminal, say

if TYPE_CHECKING:
    from mdi.cli.conversation import Conversation
    from mdi.cli.daemons import Daemon

NODES = ("desk", "kitchen", "attic")
FINDING_TIMEOUT_S = 10.0  # mDNS takes below 2 s; after this it does not work on this network
LISTENING_S = 2.0  # for one look


class Question(NamedTuple):
    """The answer is right when it contains `expected`."""

    text: str
    expected: str


QUESTIONS = (
    Question("What is 7 + 5?", "12"),
    Question("What is the capital of France?", "Paris"),
    Question("Spell cat.", "c-a-t"),
    Question("What does a cow say?", "moo"),
    Question("My name is Anna.", "Anna"),
    Question("What is my name?", "Anna"),  # only the conversation tells
)


def demo(
    no_input: Annotated[
        bool, typer.Option("--no-input", help="End after the questions; exit code 0 if all went well, else 1.")
    ] = False,
) -> None:
    """See it work: three nodes on this machine share the built-in model."""
    raise typer.Exit(run_async(_demo(chat=not no_input and on_terminal())))


async def _demo(*, chat: bool) -> int:
    from mdi.cli.conversation import Conversation, Wishes
    from mdi.cli.daemons import cluster
    from mdi.cli.inputs import open_inputs
    from mdi.cli.render import plan_text, steps_table
    from mdi.cli.repl import talk
    from mdi.pipeline.api import StarterOptions
    from mdi.pipeline.starter import open_starter

    with tempfile.TemporaryDirectory(prefix="mdi-demo-") as directory:
        async with AsyncExitStack() as stack:
            say(f"Starting {len(NODES)} nodes on this machine, as if they were three devices ...")
            daemons = await stack.enter_async_context(cluster(Path(directory), NODES))
            peers = await _meet(daemons)
            options = StarterOptions(model="demo", min_nodes=len(NODES), peers=peers, discovery=not peers)
            with shown() as on_progress:
                starter = await stack.enter_async_context(open_starter(options, daemons[0].home, on_progress))
            say("\nThe model is split over all of them:\n")
            say(plan_text(starter.problem, starter.plan) + "\n")
            right = await _quiz(Conversation(starter, Wishes()))
            steps = await starter.stage_steps()
            say("\n" + steps_table(starter.plan, steps))
            worked = [name for name in NODES if steps.get(name, 0) > 0]
            good = right == len(QUESTIONS) and len(worked) == len(NODES)
            say(f"\n{right} of {len(QUESTIONS)} answers are right; {len(worked)} of {len(NODES)} nodes did work.")
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


async def _quiz(conversation: Conversation) -> int:
    """Asks all questions as one conversation, and counts the right answers."""
    from mdi.cli.render import answer_line
    from mdi.pipeline.api import Answer

    right = 0
    for question in QUESTIONS:
        say(f"> {question.text}")
        answer = [event async for event in conversation.ask(question.text) if isinstance(event, Answer)][-1]
        good = question.expected.lower() in answer.text.lower()
        right += good
        say(f"{'✓' if good else '✗'} {answer.text}")
        note(f"  {answer_line(answer, conversation.starter.plan)}")
    return right
