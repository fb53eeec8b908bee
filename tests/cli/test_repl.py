from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from mdi.cli.conversation import Conversation, Wishes
from mdi.cli.loop import Interrupts
from mdi.cli.repl import talk
from mdi.engine.sampling import SamplingParams
from mdi.errors import LinkError, NoRoom
from mdi.model.chat import Message
from mdi.pipeline.api import FinishReason, Piece

from .conftest import Opening

SHORT = Wishes(max_tokens=5, ignore_eos=True)


class Script:
    """Inputs that are known beforehand; an exception among them is raised, as the prompt does for Ctrl-C."""

    def __init__(self, *inputs: str | BaseException, interactive: bool = True) -> None:
        self.interactive = interactive
        self._inputs = list(inputs)

    async def read(self) -> str | None:
        if not self._inputs:
            return None
        if isinstance(text := self._inputs.pop(0), BaseException):
            raise text
        return text


def roles(conversation: Conversation) -> list[str]:
    return [message.role for message in conversation.messages]


async def test_answers_are_on_stdout_and_what_they_took_on_stderr(opening: Opening, capsys: pytest.CaptureFixture[str]) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, SHORT)
        assert await talk(conversation, Script("hello", "", "again", "/quit", "never asked")) == 0
    assert roles(conversation) == ["user", "assistant"] * 2
    shown = capsys.readouterr()
    assert shown.out == f"{conversation.messages[1].content}\n{conversation.messages[3].content}\n"
    first, second = shown.err.splitlines()
    assert first.startswith("5 tokens · ")
    assert "length limit reached" in second


async def test_the_second_turn_reuses_what_the_first_computed(opening: Opening) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, SHORT)
        await talk(conversation, Script("hello", "again"))
        assert conversation.last is not None
        assert 0 < conversation.last.timings.reused_tokens < conversation.last.timings.prompt_tokens


async def test_a_system_message_comes_first_and_survives_a_reset(opening: Opening, capsys: pytest.CaptureFixture[str]) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, SHORT)
        await talk(conversation, Script("/system Be brief.", "hello", "/reset"))
        assert conversation.messages == [Message("system", "Be brief.")]
        await talk(conversation, Script("hello", "/system"))
        assert roles(conversation) == ["user", "assistant"]


async def test_a_saved_conversation_goes_on_after_loading(
    opening: Opening, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my talk.json"
    async with opening() as starter:
        first = Conversation(starter, SHORT, system="Be brief.")
        await talk(first, Script("hello", f"/save {file}"))
        second = Conversation(starter, SHORT)
        await talk(second, Script(f"/load {file}", "again"))
    assert json.loads(file.read_text())["model"] == "tiny"
    assert second.messages[:3] == first.messages
    assert roles(second) == ["system", "user", "assistant", "user", "assistant"]


async def test_commands_show_the_plan_the_work_and_help(opening: Opening, capsys: pytest.CaptureFixture[str]) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, SHORT)
        await talk(conversation, Script("/stats", "hello", "/stats", "/plan", "/help"))
        steps = sum((await starter.stage_steps()).values())
    shown = capsys.readouterr().out
    assert "No answer yet." in shown
    assert f" of {starter.ctx} tokens" in shown
    assert str(steps) in shown
    assert "Predicted: " in shown
    assert "/load FILE" in shown


async def test_what_the_user_can_correct_does_not_end_the_session(opening: Opening, capsys: pytest.CaptureFixture[str]) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, SHORT)
        inputs = ("word " * 5000, "/nope", "/load /no/such/file", "hello")
        assert await talk(conversation, Script(*inputs)) == 0
        assert roles(conversation) == ["user", "assistant"]
        assert await talk(conversation, Script(*inputs, interactive=False)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mdi: ")]
    assert len(errors) == 6
    assert "no command /nope" in errors[1]


async def test_an_error_in_the_middle_of_an_answer_begins_a_new_line(
    opening: Opening, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening() as starter:
        for before in ((Piece("half an", 1), Piece("", 2)), ()):

            async def broken(_, before=before):  # type: ignore[no-untyped-def]
                for piece in before:
                    yield piece
                raise LinkError("attic fell silent")

            monkeypatch.setattr(starter, "generate", broken)
            assert await talk(Conversation(starter, SHORT), Script("hello")) == 0
            shown = capsys.readouterr()
            assert shown.out == ("half an\n" if before else "")
            assert "mdi: attic fell silent" in shown.err
            with pytest.raises(LinkError):
                await talk(Conversation(starter, SHORT), Script("hello", interactive=False))
            capsys.readouterr()


async def test_when_nobody_can_hold_the_model_a_person_may_ask_again(
    opening: Opening, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening() as starter:
        generate, failures = starter.generate, [NoRoom("only 4 of 10 blocks fit", hint="add a node")]

        async def gone_once(request):  # type: ignore[no-untyped-def]
            if failures:
                raise failures.pop()
            async for event in generate(request):
                yield event

        monkeypatch.setattr(starter, "generate", gone_once)
        conversation = Conversation(starter, SHORT)
        assert await talk(conversation, Script("hello", "again")) == 0
    assert [message.content for message in conversation.messages if message.role == "user"] == ["again"]
    assert capsys.readouterr().err.splitlines()[:2] == ["mdi: only 4 of 10 blocks fit", "add a node"]


async def test_ctrl_c_at_an_empty_prompt_hints_at_quit(opening: Opening, capsys: pytest.CaptureFixture[str]) -> None:
    async with opening() as starter:
        assert await talk(Conversation(starter, SHORT), Script(KeyboardInterrupt(), "/quit")) == 0
    assert "/quit" in capsys.readouterr().err


async def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    opening: Opening, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, Wishes(ignore_eos=True))
        generate, before = starter.generate, signal.getsignal(signal.SIGINT)

        async def interrupted(request):  # type: ignore[no-untyped-def]
            n_pieces = 0
            async for event in generate(request):
                yield event
                n_pieces += isinstance(event, Piece)
                if n_pieces == 3 and isinstance(event, Piece):
                    os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(starter, "generate", interrupted)
            await talk(conversation, Script("hello"))
        assert signal.getsignal(signal.SIGINT) is before
        assert conversation.last is not None
        assert conversation.last.finish_reason is FinishReason.CANCELLED
        assert conversation.messages[-1] == Message("assistant", conversation.last.text)
        conversation.wishes = SHORT
        await talk(conversation, Script("go on"))
        assert conversation.last.finish_reason is FinishReason.LENGTH
    assert "stopped" in capsys.readouterr().err


async def test_ctrl_c_does_nothing_between_answers_and_a_second_one_for_the_same_answer_is_as_outside() -> None:
    async def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):  # the loop reads its wake-up pipe, then runs the handler
            await asyncio.sleep(0)

    stops: list[str] = []
    outside: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: outside.append(number))
    try:
        with Interrupts(lambda: stops.append("stop")) as interrupts:
            await press()
            assert stops == []
            with interrupts.answering():
                await press()
            await press()
            with interrupts.answering():
                await press()
            assert (stops, outside) == (["stop", "stop"], [])
            with interrupts.answering():
                await press()
                await press()
            assert (len(stops), outside) == (3, [signal.SIGINT])
    finally:
        signal.signal(signal.SIGINT, before)


async def test_raw_text_is_continued_without_a_template(opening: Opening) -> None:
    async with opening() as starter:
        conversation = Conversation(starter, Wishes(max_tokens=2, ignore_eos=True, raw=True))
        await talk(conversation, Script("hello"))
        assert conversation.last is not None
        assert list(conversation.last.prompt_token_ids) == starter.model.tokenizer.encode_prompt("hello")
        assert conversation.messages == []


async def test_a_seed_is_drawn_for_each_answer_unless_it_is_given(opening: Opening) -> None:
    async with opening() as starter:
        drawn = Conversation(starter, Wishes(SamplingParams(temperature=1.0), max_tokens=2, ignore_eos=True))
        seeds = []
        for _ in range(2):
            await talk(drawn, Script("hello"))
            seeds.append(drawn.params.seed)
        assert seeds[0] != seeds[1]
        given = [Conversation(starter, Wishes(SamplingParams(temperature=1.0), seed=seeds[0], max_tokens=8)) for _ in range(2)]
        for conversation in given:
            await talk(conversation, Script("hello"))
        assert given[0].messages == given[1].messages
        assert given[0].params.seed == seeds[0]
