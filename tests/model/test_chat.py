from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mdi.errors import ModelError
from mdi.model.chat import ChatTemplate, Message
from tests.model.tokenizers_made import make_byte_level

CHATML = """
{%- for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{{ system_message }}<|eot_id|>
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
    {% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
    {% endif %}
"""
MISTRAL = """{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}
{% if message.role == 'system' %}{% if not loop.first %}{{ raise_exception('system must come first') }}{% endif %}
{% set state.system = message.content + '\n\n' %}{% continue %}{% endif %}
{% if message.role == 'user' %}[INST] {{ state.system + message.content }} [/INST]{% set state.system = '' %}
{% elif message.role == 'assistant' %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{% else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}{% endfor %}"""
JSON = (
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{% if tools %}T{% endif %}{% if documents is none %}D{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "json": JSON}
CONVERSATIONS = (
    [Message("user", "Hi")],
    [Message("system", " Be brief. "), Message("user", "Who's there?\n<b>'\"&</b>")],
    [Message("user", "1"), Message("assistant", "uno"), Message("user", "2 日本 🙂  ")],
)
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendering_equals_transformers(
    byte_level: Path, name: str, messages: list[Message], add_generation_prompt: bool
) -> None:
    theirs = AutoTokenizer.from_pretrained(byte_level).apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    ours = ChatTemplate(TEMPLATES[name], NAMED, name).render(messages, add_generation_prompt=add_generation_prompt)
    assert ours == theirs


def test_template_is_found_wherever_checkpoints_keep_it(tmp_path: Path) -> None:
    def rendered() -> str:
        template = ChatTemplate.find(tmp_path, NAMED)
        assert template
        return template.render([])

    assert ChatTemplate.find(tmp_path, NAMED) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert ChatTemplate.find(tmp_path, NAMED) is None
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named {{ eos_token }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert rendered() == "named </s>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert rendered() == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert rendered() == "json"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered() == "file"


def test_template_of_another_type_is_refused(tmp_path: Path) -> None:
    make_byte_level(tmp_path, chat_template=3)
    with pytest.raises(ModelError, match="'chat_template'"):
        ChatTemplate.find(tmp_path, NAMED)


def test_template_under_a_name_that_is_none_is_passed_over(tmp_path: Path) -> None:
    named = [{"name": ["default"], "template": "x"}, {"name": "default", "template": "y"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.find(tmp_path, NAMED)
    assert template is not None
    assert template.render([]) == "y"


def test_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(ModelError, match=r"chat_template\.jinja.* bytes"):
        ChatTemplate.find(tmp_path, NAMED)


def test_products_that_templates_do_use_are_computed() -> None:
    source = "{{ '-' * 8 }}{{ 3 * 4 }}{{ 2 ** 10 }}{{ '%s is %d' % ('a', 1) }}{{ '%.2f' % 0.5 }}{{ 7 % 4 }}"
    assert ChatTemplate(source, NAMED, "model").render([]) == "--------121024a is 10.503"


def test_refusal_by_the_template_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"refuses this conversation: unknown role wizard"):
        ChatTemplate(MISTRAL, NAMED, "model").render([Message("wizard", "")])


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% unknown %}",
        f"{{{{ {'(' * 2000}1{')' * 2000} }}}}",
        "{% for x in messages %}" * 30 + "{% endfor %}" * 30,
        f"{{{{ {'9' * 5000} }}}}",
        "{{ f(a=1, a=2) }}",
    ],
)
def test_template_that_does_not_parse_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="is not valid"):
        ChatTemplate(source, NAMED, "model")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ range(10000000) | list | length }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ 'x' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10000000000 * messages[0].content }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%10000000000d' % 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(ModelError, match="refuses this conversation"):
        ChatTemplate(source, NAMED, "model").render([Message("user", "x")])


def test_endless_template_source_is_refused() -> None:
    with pytest.raises(ModelError, match="characters long"):
        ChatTemplate("x" * (1 << 20) + "x", NAMED, "model")
