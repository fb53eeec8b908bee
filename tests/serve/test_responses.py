"""The official client's `responses` against a real server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.serve.test_openai import CALL, CITY

FRANCE = "What is the capital of France?"
WEATHER: Any = {"type": "function", "name": "weather", "description": "Weather of a city", "parameters": CITY, "strict": True}


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input=FRANCE)
    assert "Paris" in response.output_text
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": FRANCE}]}]
    assert client.responses.create(model="demo", input=items).output_text == response.output_text


def test_a_stream_builds_the_same_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo", input=FRANCE)
    with client.responses.stream(model="demo", input=FRANCE) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    assert whole.usage is not None
    assert len(deltas) == whole.usage.output_tokens
    assert events[-1].type == "response.completed"


def test_a_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="demo", input=FRANCE, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    last = list(client.responses.create(model="demo", input=FRANCE, max_output_tokens=2, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_an_answer_obeys_a_schema(babble_client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    response = babble_client.responses.create(model="babbler", input=FRANCE, text=text)
    assert json.loads(response.output_text)["city"] in ("Rome", "Oslo")


def test_a_tool_is_called_and_its_result_read(babble_client: openai.OpenAI) -> None:
    wanted: Any = {"model": "babbler", "input": FRANCE, "tools": [WEATHER], "tool_choice": "required"}
    (call,) = babble_client.responses.create(**wanted).output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(babble_client.responses.create(**wanted, stream=True))
    assert [event.type for event in events[2:-1]] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    after: Any = [
        {"role": "user", "content": FRANCE},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "snow"},
    ]
    babble_client.responses.create(model="babbler", input=after, tools=[WEATHER], max_output_tokens=2)


def test_words_and_a_call_are_two_items(babble_client: openai.OpenAI) -> None:
    pattern = "Well\\. " + CALL.replace("{", "\\{").replace("}", "\\}")
    wanted: Any = {"model": "babbler", "input": FRANCE, "tools": [WEATHER]}
    wanted["extra_body"] = {"structured_outputs": {"regex": pattern}}
    whole = babble_client.responses.create(**wanted)
    assert [item.type for item in whole.output] == ["message", "function_call"]
    assert whole.output_text.strip() == "Well."
    last = list(babble_client.responses.create(**wanted, stream=True))[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["message", "function_call"]
    assert last.response.output_text.strip() == "Well."


def test_nothing_is_stored(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="demo", input=FRANCE, previous_response_id="resp_1")
    assert client.responses.create(model="demo", input=FRANCE, max_output_tokens=1).model_dump()["store"] is False
