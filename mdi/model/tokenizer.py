"""Text to token ids and back; the tokenizer comes from the files of a Hugging Face checkpoint, or is built by `mdi.model.gguf`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.fields import Fields, read_bounded
from mdi.model.sentencepiece_bpe import read_sentencepiece
from mdi.model.token_bytes import StreamDecoder, TokenBytes

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Tokens that end a turn. Models of the chat kind often name only one of theirs in their configs.
END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
MAX_FILE_BYTES = 128 << 20  # of tokenizer.json: Gemma's has 35 MB
MAX_ID_DIGITS = 9
WORD_JOINER = "\u2060"  # takes no room and allows no break: invisible inside a defused control token


class Tokenizer:
    """One model's tokenizer. Immutable.

    In every text that is encoded, the names of control tokens (`<|im_end|>`) become those tokens: chat templates are written
    for that. Whoever puts the words of others into a template passes them through `defuse` first, or they could end a turn.
    """

    def __init__(self, backend: Backend, config: ModelConfig, settings: TokenizerSettings, origin: str) -> None:
        backend.no_truncation()  # a tokenizer.json may hold the settings of some training run
        backend.no_padding()
        _add_tokens(backend, settings.added, settings.named, origin)
        self._backend = backend
        self._origin = origin
        self._vocab_size = config.vocab_size
        self._bytes = TokenBytes(backend, origin)
        self.named_tokens: Mapping[str, str] = settings.named
        """Texts of the tokens that templates use, by their names: `bos_token`, `eos_token`, ..."""
        bos = settings.named.get("bos_token")
        self.bos_id = config.bos_id if bos is None else backend.token_to_id(bos)
        self._prompt_bos = self.bos_id if settings.adds_bos(backend, self.bos_id) else None
        self.control_tokens = frozenset(
            token.content for token in backend.get_added_tokens_decoder().values() if token.special and len(token.content) > 1
        )
        self._control = re.compile("|".join(re.escape(token) for token in sorted(self.control_tokens, key=len, reverse=True)))
        ends = [*(self.control_tokens & set(END_OF_TURN)), settings.named.get("eos_token")]
        end_ids = (backend.token_to_id(token) for token in ends if token is not None)
        self.stop_ids = frozenset(config.eos_ids) | settings.eos_ids | {end for end in end_ids if end is not None}
        """Any of these ends a reply: what the configs call eos, and every known end-of-turn token that the model has."""

    @property
    def token_bytes(self) -> TokenBytes:
        """What each token is in bytes."""
        return self._bytes

    @classmethod
    def load(cls, directory: Path, config: ModelConfig) -> Tokenizer:
        """From tokenizer.json, else tokenizer.model (SentencePiece BPE). Raises ModelError when neither is there or usable."""
        settings = TokenizerSettings.read(directory)
        path = directory / "tokenizer.json"
        if path.is_file():
            with library_errors(f"{path} is not a tokenizer"):
                return cls(Backend.from_buffer(read_bounded(path, MAX_FILE_BYTES)), config, settings, str(path))
        path = directory / "tokenizer.model"
        if path.is_file():
            with library_errors(f"{path} cannot be used"):
                return cls(read_sentencepiece(path, legacy=settings.legacy), config, settings, str(path))
        raise ModelError(
            f"{directory} holds no tokenizer (tokenizer.json or tokenizer.model)",
            hint="download the whole model, not only weights",
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and nothing else: for rendered templates, which bring their own beginning-of-text token.

        Raises ModelError for a token that the model has no embedding of, and for text that is no Unicode (half a surrogate pair).
        """
        with library_errors(f"{self._origin} cannot encode {text!r:.80}"):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self._vocab_size:
            token = self._backend.id_to_token(max(ids))
            raise ModelError(f"{self._origin} has the token {token!r}, but the model only the first {self._vocab_size} ids")
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of `text` to be continued as it is, after the beginning-of-text token if the model was trained with one."""
        ids = self.encode(text)
        return ids if self._prompt_bos is None or ids[:1] == [self._prompt_bos] else [self._prompt_bos, *ids]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of `token_ids`, without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.stream().text(token_ids)

    def stream(self, *, continues: bool = False) -> StreamDecoder:
        """A decoder for one text. With `continues` the text goes on after a prompt, so a leading space is a part of it."""
        return StreamDecoder(self._bytes, continues=continues)

    def defuse(self, text: str) -> str:
        """`text` with an invisible character inside every control token's name, so that it is read as the plain text it is."""
        while self.control_tokens and self._control.search(text):
            text = self._control.sub(_defused, text)
        return text


def _defused(match: re.Match[str]) -> str:
    """A token that holds the invisible character itself is left out: no end of them could be made otherwise."""
    token = match[0]
    return "" if WORD_JOINER in token else token[0] + WORD_JOINER + token[1:]


@contextlib.contextmanager
def library_errors(said: str) -> Iterator[None]:
    """Whatever the tokenizers library raises becomes a ModelError: nothing of it is narrower than Exception, a panic not even that."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ModelError(f"{said}: {error}", hint="download the model again") from error


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What stands beside the tokenizer itself.

    named: texts of special tokens by name (`bos_token`, ...); added: tokens that come on top of the tokenizer's file, by id;
    eos_ids: ids that end a reply, beside the config's; add_bos: whether prompts begin with the beginning-of-text token, None if only the
    tokenizer itself tells; legacy: see `read_sentencepiece`.
    """

    named: Mapping[str, str]
    added: Mapping[int, AddedToken]
    eos_ids: frozenset[int]
    add_bos: bool | None
    legacy: bool = True

    @classmethod
    def read(cls, directory: Path) -> TokenizerSettings:
        """From tokenizer_config.json and its older companions, and generation_config.json."""
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
        config, older_named, older_added, generation = (_read_json(directory / name) for name in names)
        return cls(
            named={name: text for name in NAMED if (text := _token_text(config, name) or _token_text(older_named, name))},
            added=_added_tokens(config, older_added),
            eos_ids=frozenset(generation.token_ids("eos_token_id")),
            add_bos=config.boolean("add_bos_token") if config.values.get("add_bos_token") is not None else None,
            legacy=config.boolean("legacy", True),
        )

    def adds_bos(self, backend: Backend, bos_id: int | None) -> bool:
        """Whether prompts begin with it: as the settings say, else as the tokenizer itself does."""
        if self.add_bos is not None:
            return self.add_bos
        return bool(backend.encode("", add_special_tokens=True).ids[:1] == [bos_id])


def _read_json(path: Path) -> Fields:
    return Fields.read(path) if path.is_file() else Fields({}, str(path))


def _token_text(fields: Fields, name: str) -> str | None:
    """A token is written as its text, or as an object that holds it as `content`."""
    value = fields.values.get(name)
    if isinstance(value, dict):
        return Fields(value, f"{name} of {fields.origin}").text("content")
    return None if value is None else fields.text(name)


def _added_tokens(config: Fields, older: Fields) -> dict[int, AddedToken]:
    """Tokens that come on top of the tokenizer's file, by id."""
    added = {older.integer(text, least=0): AddedToken(text, normalized=False) for text in older.values}
    described = config.object("added_tokens_decoder") or Fields({}, config.origin)
    for token_id in described.values:
        entry = described.object(token_id)
        if entry is None or not token_id.isdecimal() or len(token_id) > MAX_ID_DIGITS:
            raise described.refusal(token_id, "an object under a token id")
        flags = {name: entry.boolean(name, False) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        added[int(token_id)] = AddedToken(entry.text("content"), **flags)
    return added


def _add_tokens(backend: Backend, added: Mapping[int, AddedToken], named: Mapping[str, str], origin: str) -> None:
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    new = {token_id: token for token_id, token in sorted(added.items()) if token.content not in known}
    backend.add_tokens(list(new.values()))  # in one go: each call builds the search for all of them anew
    for token_id, token in new.items():
        if backend.token_to_id(token.content) != token_id:
            raise ModelError(f"{origin} cannot take the added token {token.content!r} as id {token_id}: ids would have a gap")
    missing = [text for text in named.values() if text not in known and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in missing])
