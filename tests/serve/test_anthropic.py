"""Anthropic's official client against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.serve.servers import TIMEOUT_S, Running
from tests.serve.test_openai import CITY

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {"name": "weather", "description": "Weather of a city", "input_schema": CITY}


@pytest.fixture(scope="module")
def claude(demo: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo.url, api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def babbling_claude(babble: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=babble.url, api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


def test_a_question_is_answered(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="demo", max_tokens=50, messages=FRANCE)
    assert "Paris" in message.content[0].text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    told = message.usage
    counted = claude.messages.count_tokens(model="demo", messages=FRANCE).input_tokens
    assert told.input_tokens + (told.cache_read_input_tokens or 0) == counted


def test_a_stream_gives_the_same_message_and_an_event_for_each_token(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model="demo", max_tokens=50, messages=FRANCE)
    with claude.messages.stream(model="demo", max_tokens=50, messages=FRANCE) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == final.content[0].text == whole.content[0].text
    assert len(pieces) == final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"


def test_the_stop_sequence_that_came_is_named(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "demo", "max_tokens": 50, "messages": FRANCE, "stop_sequences": ["never", "France"]}
    message = claude.messages.create(**wanted)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "France")
    with claude.messages.stream(**wanted) as stream:
        assert stream.get_final_message().stop_sequence == "France"
    short = claude.messages.create(model="demo", max_tokens=1, messages=FRANCE)
    assert short.stop_reason == "max_tokens"


def test_system_and_blocks_of_text_are_read(claude: anthropic.Anthropic) -> None:
    blocks: Any = [{"type": "text", "text": "What is the capital of "}, {"type": "text", "text": "France?"}]
    message = claude.messages.create(model="demo", max_tokens=50, messages=[{"role": "user", "content": blocks}])
    assert "Paris" in message.content[0].text
    claude.messages.create(model="demo", max_tokens=2, messages=FRANCE, system=[{"type": "text", "text": "Be kind."}])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called_and_its_result_read(babbling_claude: anthropic.Anthropic, choice: Any) -> None:
    wanted: Any = {"model": "babbler", "max_tokens": 200, "messages": FRANCE, "tools": [WEATHER]}
    message = babbling_claude.messages.create(**wanted, tool_choice=choice)
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert (call.type, call.name, call.input["city"] in ("Rome", "Oslo")) == ("tool_use", "weather", True)
    with babbling_claude.messages.stream(**wanted, tool_choice=choice) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.type, streamed.name) == ("tool_use", "weather")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "snow"}]}
    after: Any = [*FRANCE, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    babbling_claude.messages.create(model="babbler", max_tokens=2, messages=after, tools=[WEATHER])


def test_errors_are_those_that_the_client_knows(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as wrong:
        claude.messages.create(model="claude-3", max_tokens=5, messages=FRANCE)
    assert wrong.value.body["error"]["type"] == "not_found_error"
    picture: Any = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        claude.messages.create(model="demo", max_tokens=5, messages=[{"role": "user", "content": picture}])
    with pytest.raises(anthropic.BadRequestError, match="empty"):
        claude.messages.create(model="demo", max_tokens=5, messages=[])
