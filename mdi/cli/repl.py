"""The conversation at a terminal or over a pipe: reads, answers, obeys commands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext

from mdi.cli.commands import Call, Command, Say, help_text, parse
from mdi.cli.conversation import Conversation
from mdi.cli.failures import describe
from mdi.cli.inputs import Inputs
from mdi.cli.loop import Interrupts
from mdi.cli.render import answer_line, plan_text, stats_text
from mdi.cli.terminal import note, say
from mdi.cli.transcript import load, save
from mdi.errors import ClusterError, UserError
from mdi.pipeline.api import Answer


async def stream(conversation: Conversation, text: str) -> Answer:
    """Print the answer to `text` as it comes, and what it took on stderr. One that breaks off ends its line all the same."""
    answer: Answer | None = None
    begun = False
    try:
        async with aclosing(conversation.ask(text)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    answer = event
                elif event.text:
                    begun = True
                    say(event.text, end="")
    finally:
        if begun or answer is not None:
            say("")
    assert answer is not None
    note(answer_line(answer, conversation.starter.plan))
    return answer


async def talk(conversation: Conversation, inputs: Inputs) -> int:
    """Until /quit or the end of the input. Returns the exit code: over a pipe that of the first turn that failed.

    What a person can put right before the next turn is printed, and the session goes on: what was typed, and nodes that are gone. Over
    a pipe a ClusterError ends it, for nobody can.
    """
    if not inputs.interactive:
        return await _talk(conversation, inputs, nullcontext)
    with Interrupts(conversation.starter.cancel) as interrupts:
        return await _talk(conversation, inputs, interrupts.answering)


async def _talk(conversation: Conversation, inputs: Inputs, answering: Callable[[], AbstractContextManager[None]]) -> int:
    exit_code = 0
    while True:
        try:
            text = await inputs.read()
        except KeyboardInterrupt:
            note("type /quit or press Ctrl-D to leave")
            continue
        if text is None:
            return exit_code
        try:
            match parse(text):
                case Say(message):
                    with answering():
                        await stream(conversation, message)
                case Call(Command.QUIT):
                    return exit_code
                case Call() as call:
                    await _obey(conversation, call)
                case None:
                    pass
        except (UserError, ClusterError) as error:
            if not inputs.interactive and isinstance(error, ClusterError):
                raise
            describe(error)
            if not inputs.interactive:
                exit_code = exit_code or error.exit_code


async def _obey(conversation: Conversation, call: Call) -> None:
    starter = conversation.starter
    match call.command:
        case Command.HELP:
            say(help_text())
        case Command.RESET:
            conversation.reset(conversation.system)
            note("a new conversation begins")
        case Command.STATS:
            steps = await starter.stage_steps()
            say(stats_text(conversation.last, len(conversation.messages), starter.ctx, starter.plan, steps))
        case Command.PLAN:
            say(plan_text(starter.problem, starter.plan))
        case Command.SYSTEM:
            conversation.set_system(call.argument)
            note("the system message is set" if call.argument else "there is no system message now")
        case Command.SAVE:
            save(call.argument, starter.model.source.name, conversation.messages)
            note(f"saved to {call.argument}")
        case Command.LOAD:
            conversation.resume(load(call.argument))
            note(f"the conversation goes on after message {len(conversation.messages)}")
        case Command.QUIT:
            raise AssertionError("talk() handles it")
