"""From a conversation to the text that a model was trained to continue: its chat template, rendered in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mdi.errors import ModelError
from mdi.model.fields import Fields, read_bounded

MAX_TEMPLATE_CHARS = 1 << 20  # the longest published ones, with tools, are some 20,000
MAX_TEMPLATE_BYTES = 4 * MAX_TEMPLATE_CHARS  # UTF-8
MAX_PRODUCT = 1 << 20  # characters or elements; templates repeat a dash or a space
MAX_NUMBER, MAX_POWER = 1 << 64, 64
_TOOLS = re.compile(r"\btools\b")
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)")  # a field of thousands of characters, or of as many as an argument says


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Roles are the template's matter: system, user and assistant are the usual ones."""

    role: str
    content: str


class ChatTemplate:
    """A model's own template. It is code from whoever made the model: it runs sandboxed and sees only its arguments.

    What one operator makes is bounded, but not the number of steps, nor what filters make: a template may loop for long.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str], origin: str) -> None:
        """named_tokens: texts by name, such as `bos_token`. Raises ModelError for a template that does not parse."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"the chat template of {origin} is {len(source)} characters long, more than {MAX_TEMPLATE_CHARS}")
        self._named_tokens = dict(named_tokens)
        self._origin = origin
        self.source = source
        try:
            self._template: Template = _environment().from_string(source)
        except Exception as error:  # beside TemplateError whatever Python's own parser says, for it compiles what jinja made
            raise ModelError(f"the chat template of {origin} is not valid: {error}", hint="use --raw") from error

    @property
    def takes_tools(self) -> bool:
        """Whether it does anything with tools: a model without that was not trained to call any."""
        return _TOOLS.search(self.source) is not None

    @classmethod
    def find(cls, directory: Path, named_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """Of chat_template.jinja, chat_template.json and tokenizer_config.json the first that has one; None when none has."""
        path = directory / "chat_template.jinja"
        if path.is_file():
            return cls(read_bounded(path, MAX_TEMPLATE_BYTES).decode("utf-8", "replace"), named_tokens, str(path))
        for path in (directory / "chat_template.json", directory / "tokenizer_config.json"):
            source = _source(Fields.read(path)) if path.is_file() else None
            if source is not None:
                return cls(source, named_tokens, str(path))
        return None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, up to where the assistant's next words begin if `add_generation_prompt`.

        Raises ModelError when the template refuses the conversation (some take no system message, or want turns to alternate).
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self.render_turns(turns, add_generation_prompt=add_generation_prompt)

    def render_turns(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """As `render`, of turns that may hold more than words: an assistant's `tool_calls`, a tool's `tool_call_id`.

        `tools` are JSON schemas as OpenAI's API has them, which most templates are written for; `options` are further variables of the
        template, such as Qwen's `enable_thinking`, and cannot take the place of those that every template has.
        """
        given: dict[str, Any] = {"messages": turns, "tools": tools, "documents": None}
        given |= {"add_generation_prompt": add_generation_prompt, **self._named_tokens}
        try:
            return self._template.render(**{**(options or {}), **given})
        except Exception as error:  # a template is a program: it can fail in every way that one can
            raise ModelError(
                f"the chat template of {self._origin} refuses this conversation: {error}", hint="use --raw"
            ) from error


def _source(config: Fields) -> str | None:
    """One template, or a list of named ones of which `default` is meant."""
    value = config.values.get("chat_template")
    if isinstance(value, list):
        value = next(
            (entry.get("template") for entry in value if isinstance(entry, dict) and entry.get("name") == "default"), None
        )
    if value is not None and not isinstance(value, str):
        raise config.refusal("chat_template", "a template or a list of named ones")
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """The operators that make much of little are computed only for what templates need them for.

    Jinja computes others between constants while it compiles, so before anything could be refused.
    """

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _is_vast(operator, left, right):
            raise SecurityError(f"it computes {operator} of what is too large")
        return super().call_binop(context, operator, left, right)


def _is_vast(operator: str, left: Any, right: Any) -> bool:
    if operator == "%" and isinstance(left, str):
        return _WIDE.search(left) is not None
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple):
            return isinstance(other, int) and len(one) * other > MAX_PRODUCT
    numbers = [abs(side) for side in (left, right) if isinstance(side, int | float)]
    return any(number > MAX_NUMBER for number in numbers) or (operator == "**" and numbers[-1:] > [MAX_POWER])


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words, for training. Here it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Sandbox:
    extensions = [loopcontrols, _Generation]
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _tojson(value: Any, *, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
