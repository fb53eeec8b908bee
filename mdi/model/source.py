"""Where models come from, and all of one model that is not its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mdi.errors import ModelError, UserError
from mdi.model.chat import ChatTemplate, Message
from mdi.model.checkpoint import Checkpoint, read_config
from mdi.model.config import ModelConfig
from mdi.model.gguf.config import read_config as gguf_config
from mdi.model.gguf.files import SUFFIX, Gguf, find, model_name, part_paths
from mdi.model.gguf.tokenizer import read_chat, read_tokenizer
from mdi.model.gguf.weights import GgufWeights
from mdi.model.gptq_awq import Coding
from mdi.model.layout import default_block
from mdi.model.packed import experts_rounded, packed_bytes, source_bytes
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.tokenizer import Tokenizer
from mdi.model.weights import WeightSource

CONFIG = "config.json"
MODELS_ARE = "a model is a GGUF file (its name ends in .gguf), or a directory with config.json and .safetensors files"
BUILT_IN = {"demo": Path(__file__).parent / "demo"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model by what the user calls it, the directory of its checkpoint, and for a GGUF model its (first) file."""

    name: str
    directory: Path
    gguf: Path | None = None


def is_here(name: str) -> bool:
    """Whether a file or directory is called so. A working directory that this user may not look into holds none, as for a shell."""
    try:
        return Path(name).expanduser().exists()
    except PermissionError:
        return False


def resolve(name_or_path: str) -> ModelSource:
    """A built-in model's name, the directory of a Hugging Face checkpoint or of one GGUF model, or a GGUF file.

    Raises ModelError for anything else.
    """
    try:
        return _resolve(name_or_path)
    except PermissionError as error:
        raise ModelError(
            f"{name_or_path} cannot be read: {error.strerror}", hint="the user as whom mdi runs must be allowed to read it"
        ) from error


def _resolve(name_or_path: str) -> ModelSource:
    if name_or_path in BUILT_IN:
        directory = BUILT_IN[name_or_path]
        if not directory.is_dir():
            raise ModelError(f"the built-in model {name_or_path!r} is not part of this installation", hint="install mdi again")
        return ModelSource(name_or_path, directory)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path.resolve()
        file = None if (path / CONFIG).is_file() else find(path)
        return ModelSource(_directory_name(path), path, file)
    if path.is_file() and path.name.endswith(SUFFIX):
        real = path.resolve()  # unless it is a link to a file of another kind of name, as in the hub's cache
        file = part_paths(real if real.name.endswith(SUFFIX) else path.absolute())[0]
        return ModelSource(model_name(file), file.parent, file)
    if path.is_file():
        raise ModelError(f"{path} is a file, and no GGUF file", hint=MODELS_ARE)
    known = ", ".join(sorted(BUILT_IN))
    if name_or_path.startswith(("~", ".", "/")) or "\\" in name_or_path:
        raise ModelError(f"there is no file or directory {path}", hint=f"check the path, or use a built-in model: {known}")
    raise ModelError(
        f"there is no model {name_or_path!r}, and no directory of that name",
        hint=f"built-in models: {known}; or give the path of a downloaded checkpoint",
    )


def _directory_name(path: Path) -> str:
    """Its own, or its repository's where it is a commit in the hub's cache: `models--ORG--NAME/snapshots/COMMIT`."""
    repository = path.parents[1].name if path.parent.name == "snapshots" else ""
    return repository.rpartition("--")[2] if repository.startswith("models--") else path.name


def stored_weights(source: ModelSource) -> WeightSource:
    """The weights as they are stored, for whoever needs no tokenizer. Raises ModelError as `Model` does, and for damaged weights."""
    if source.gguf is None:
        return Checkpoint.open(source.directory)
    return GgufWeights.open(Gguf.open(source.gguf))


def kept_as(stored: WeightSource, quant: Quant, block: int | None = None) -> tuple[WeightSource, WeightFormat]:
    """The weights as `--quant` wants them, and the format in which their matrices will lie, or most of them.

    `block` None: `default_block`. Of quantised files (GGUF, GPTQ, AWQ) these are their own codes, unless others are asked for.
    """
    fmt = WeightFormat.of(quant, block or default_block(stored.config))
    if not stored.quantised:
        return stored, fmt
    if quant is Quant.AUTO:
        return stored, stored.main_format() or fmt
    return stored.as_floats(), fmt


def notices(name: str, stored: WeightSource, quant: Quant) -> tuple[str, ...]:
    """What the user of a quantised file should know of what becomes of its weights."""
    if not stored.quantised or quant is Quant.NONE:
        return ()
    if quant is not Quant.AUTO:
        return (f"{name} is quantised already, and rounded again to {quant}; --quant auto keeps its own values",)
    if not experts_rounded(stored):
        return ()
    _, fmt = kept_as(stored, quant)
    finer = "; --quant int8 keeps more of them" if fmt.bits == 4 else ""
    return (f"experts have no kernel for all formats of {name}, and are rounded again to int{fmt.bits}{finer}",)


class Model:
    """One model's config, tokenizer and chat template; its weights are opened, and checked, when `checkpoint` is first used."""

    def __init__(self, source: ModelSource) -> None:
        """Raises ModelError when the config or the tokenizer cannot be used."""
        self.source = source
        self._gguf = None if source.gguf is None else Gguf.open(source.gguf)
        self.config: ModelConfig
        if self._gguf is None:
            self.config = read_config(source.directory)
            self.tokenizer = Tokenizer.load(source.directory, self.config)
        else:
            self.config = gguf_config(self._gguf)
            self.tokenizer = read_tokenizer(self._gguf, self.config)
        self._coded = self._gguf is not None or Coding.find(source.directory) is not None

    @cached_property
    def checkpoint(self) -> WeightSource:
        """The weights as they are stored."""
        if self._gguf is not None:
            return GgufWeights.open(self._gguf, self.config)
        return Checkpoint.open(self.source.directory, self.config)

    def weights(self, quant: Quant) -> WeightSource:
        """The weights as `--quant` wants them."""
        return kept_as(self.checkpoint, quant)[0]

    def weight_format(self, quant: Quant, block: int | None = None) -> WeightFormat:
        """How the packs' matrices will lie; of codes taken as they are, how most of them do. Does not open a checkpoint of floats."""
        if not self._coded:
            return WeightFormat.of(quant, block or default_block(self.config))
        return kept_as(self.checkpoint, quant, block)[1]

    def packed_bytes(self, quant: Quant, fmt: WeightFormat) -> tuple[int, int]:
        """Bytes of the largest block and of the head in packs. Does not open a checkpoint of floats."""
        return packed_bytes(self.config, fmt) if not self._coded else source_bytes(self.weights(quant), fmt)

    def notices(self, quant: Quant) -> tuple[str, ...]:
        """What the user should know about these weights."""
        return notices(self.source.name, self.checkpoint, quant) if self._coded else ()

    @cached_property
    def chat(self) -> ChatTemplate:
        """Raises UserError for a model that has no template: it was not trained to converse."""
        if self._gguf is None:
            template = ChatTemplate.find(self.source.directory, self.tokenizer.named_tokens)
        else:
            template = read_chat(self._gguf, self.tokenizer)
        if template is None:
            raise UserError(f"{self.source.name} has no chat template: it continues text", hint="use --raw")
        return template

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, ready for the assistant's next turn. Control tokens inside messages are plain text."""
        return self.encode_turns([{"role": message.role, "content": message.content} for message in messages])

    def encode_turns(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """As `encode_chat`, of turns, tools and options as `ChatTemplate.render_turns` takes them. All their texts are plain text."""
        turns, tools, options = (_defused(part, self.tokenizer.defuse) for part in (turns, tools, options))
        return self.tokenizer.encode(self.chat.render_turns(turns, tools=tools, options=options))


def _defused(value: Any, defuse: Callable[[str], str]) -> Any:
    """JSON with every text in it defused, names of members too."""
    if isinstance(value, str):
        return defuse(value)
    if isinstance(value, Mapping):
        return {defuse(name): _defused(member, defuse) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_defused(member, defuse) for member in value]
    return value
