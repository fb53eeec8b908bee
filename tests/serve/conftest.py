from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from mdi.cluster.home import Home
from mdi.model.quantise import Quant
from mdi.pipeline.api import StarterOptions
from mdi.serve.server import ServeOptions
from mdi.serve.settings import Defaults
from tests.serve.servers import TIMEOUT_S, Running, running
from tools.make_checkpoint import make_checkpoint
from tools.shapes import SHAPES

N_SLOTS = 8

# Qwen 2.5's way of telling of tools, in short.
TOOL_TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write <tool_call>{"name": NAME, "arguments": {...}}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home")).create()


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: it babbles until it is stopped. Its template knows tools."""
    directory = make_checkpoint(replace(SHAPES["tiny"], max_positions=4096), tmp_path_factory.mktemp("model") / "babbler").path
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TOOL_TEMPLATE}))
    return directory


@pytest.fixture(scope="session")
def demo(home: Home) -> Iterator[Running]:
    """The built-in model in fp32, whose answers do not depend on what else is computed."""
    starting = StarterOptions("demo", Quant.NONE, n_slots=N_SLOTS, discovery=False, threads=1)
    with running(starting, ServeOptions(port=0, defaults=Defaults(temperature=0.0)), home) as server:
        yield server


@pytest.fixture(scope="session")
def babble(home: Home, babbler: Path) -> Iterator[Running]:
    """One slot and a short queue: everybody is in everybody's way."""
    starting = StarterOptions(str(babbler), Quant.NONE, ctx=2048, n_slots=1, discovery=False, threads=1)
    with running(starting, ServeOptions(port=0, max_queue=3), home) as server:
        yield server


@pytest.fixture(scope="session")
def client(demo: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def babble_client(babble: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{babble.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client
