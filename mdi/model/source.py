"""Where models come from, and all of one model that is not its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mdi.errors import ModelError, UserError
from mdi.model.chat import ChatTemplate, Message
from mdi.model.checkpoint import Checkpoint, read_config
from mdi.model.config import ModelConfig
from mdi.model.tokenizer import Tokenizer

BUILT_IN = {"demo": Path(__file__).parent / "demo"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model by what the user calls it, and the directory of its checkpoint."""

    name: str
    directory: Path


def resolve(name_or_path: str) -> ModelSource:
    """A built-in model's name, or the path of a Hugging Face checkpoint's directory. Raises ModelError for anything else."""
    if name_or_path in BUILT_IN:
        directory = BUILT_IN[name_or_path]
        if not directory.is_dir():
            raise ModelError(f"the built-in model {name_or_path!r} is not part of this installation", hint="install mdi again")
        return ModelSource(name_or_path, directory)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path.resolve()
        return ModelSource(path.name, path)
    if path.is_file():
        raise ModelError(f"{path} is a file; a model is a directory with config.json and .safetensors files")
    known = ", ".join(sorted(BUILT_IN))
    if name_or_path.startswith(("~", ".", "/")) or "\\" in name_or_path:
        raise ModelError(f"there is no directory {path}", hint=f"check the path, or use a built-in model: {known}")
    raise ModelError(
        f"there is no model {name_or_path!r}, and no directory of that name",
        hint=f"built-in models: {known}; or give the path of a downloaded checkpoint",
    )


class Model:
    """One model's config, tokenizer and chat template; its weights are opened, and checked, when `checkpoint` is first used."""

    def __init__(self, source: ModelSource) -> None:
        """Raises ModelError when the config or the tokenizer cannot be used."""
        self.source = source
        self.config: ModelConfig = read_config(source.directory)
        self.tokenizer = Tokenizer.load(source.directory, self.config)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.source.directory, self.config)

    @cached_property
    def chat(self) -> ChatTemplate:
        """Raises UserError for a model that has no template: it was not trained to converse."""
        template = ChatTemplate.find(self.source.directory, self.tokenizer.named_tokens)
        if template is None:
            raise UserError(f"{self.source.name} has no chat template: it continues text", hint="use --raw")
        return template

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, ready for the assistant's next turn. Control tokens inside messages are plain text."""
        defused = [Message(message.role, self.tokenizer.defuse(message.content)) for message in messages]
        return self.tokenizer.encode(self.chat.render(defused))
