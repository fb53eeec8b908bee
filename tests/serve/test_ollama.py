"""Ollama's API, as its documentation has it: lines of JSON."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.serve.servers import TIMEOUT_S, Running
from tests.serve.test_openai import CITY, WEATHER

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
COUNTED = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def lines(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx2.stream("POST", server.url + path, json=body, timeout=TIMEOUT_S) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in reply.iter_lines()]


def test_a_chat_streams_unless_it_is_told_not_to(demo: Running) -> None:
    streamed = lines(demo, "/api/chat", {"model": "demo:latest", "messages": FRANCE})
    whole = demo.post("/api/chat", {"model": "demo", "messages": FRANCE, "stream": False}).json()
    assert "Paris" in whole["message"]["content"]
    assert "".join(line["message"]["content"] for line in streamed) == whole["message"]["content"]
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]
    assert streamed[-1]["eval_count"] == len(streamed) - 1 == whole["eval_count"]
    assert all(type(whole[name]) is int for name in COUNTED)
    assert whole["done_reason"] == "stop"


def test_text_is_generated_with_and_without_the_template(demo: Running) -> None:
    asked = {"model": "demo", "prompt": FRANCE[0]["content"], "stream": False}
    assert "Paris" in demo.post("/api/generate", asked).json()["response"]
    raw = demo.post("/api/generate", asked | {"prompt": "The capital of", "raw": True, "options": {"num_predict": 4}}).json()
    same = demo.post("/v1/completions", {"prompt": "The capital of", "max_tokens": 4}).json()
    assert raw["response"] == same["choices"][0]["text"]
    assert raw["done_reason"] == "length"
    assert "".join(line["response"] for line in lines(demo, "/api/generate", asked | {"stream": True})).strip()


def test_options_are_read_by_their_names_here(demo: Running) -> None:
    def ask(**options: Any) -> str:
        wanted = {"messages": FRANCE, "stream": False, "options": {"temperature": 3, "num_predict": 12} | options}
        return str(demo.post("/api/chat", wanted).json()["message"]["content"])

    assert ask(seed=1) == ask(seed=1)
    assert len({ask(seed=seed) for seed in range(4)}) > 1
    assert "France" not in ask(temperature=0, stop=["France"], num_predict=-1)
    wrong = demo.post("/api/chat", {"messages": FRANCE, "options": {"repeat_penalty": "much"}})
    assert wrong.status_code == 400
    assert "repetition_penalty" in wrong.json()["error"]


def test_an_answer_obeys_a_format(babble: Running) -> None:
    said = babble.post("/api/chat", {"messages": FRANCE, "stream": False, "format": CITY}).json()["message"]["content"]
    assert json.loads(said)["city"] in ("Rome", "Oslo")


def test_tools_are_called_with_arguments_as_objects(babble: Running) -> None:
    wanted = {"messages": FRANCE, "stream": False, "tools": [WEATHER], "tool_choice": "required"}
    message = babble.post("/api/chat", wanted).json()["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["arguments"]["city"] in ("Rome", "Oslo")
    after = [*FRANCE, message, {"role": "tool", "tool_name": "weather", "content": "snow"}]
    again = {"messages": after, "tools": [WEATHER], "stream": False, "options": {"num_predict": 2}}
    assert babble.post("/api/chat", again).status_code == 200


def test_what_is_here_is_listed(demo: Running, babble: Running) -> None:
    (model,) = demo.get("/api/tags").json()["models"]
    assert (model["name"], model["details"]["family"]) == ("demo", "llama")
    assert model["size"] > 1_000_000
    assert "version" in demo.get("/api/version").json()
    assert demo.post("/api/show", {"model": "demo"}).json()["capabilities"] == ["completion"]
    assert babble.post("/api/show", {"model": "babbler"}).json()["capabilities"] == ["completion", "tools"]


def test_asking_to_load_a_model_is_answered_at_once(demo: Running) -> None:
    for path in ("/api/chat", "/api/generate"):
        assert demo.post(path, {"model": "demo"}).json()["done_reason"] == "load"


def test_errors_are_a_text(demo: Running) -> None:
    reply = demo.post("/api/chat", {"model": "llama3", "messages": FRANCE})
    assert reply.status_code == 404
    assert "llama3" in reply.json()["error"]
