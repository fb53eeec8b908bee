"""Tokenizers from GGUF metadata: SentencePiece BPE (`llama`) and byte-level BPE (`gpt2`), with the file's special tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from mdi.errors import ModelError
from mdi.model.chat import ChatTemplate
from mdi.model.config import ModelConfig
from mdi.model.gguf.files import Gguf
from mdi.model.gguf.pretokenizers import pre_tokenizer
from mdi.model.gguf.vocabulary import PREFIX, Kind, Vocabulary, special_id
from mdi.model.sentencepiece_bpe import sentencepiece_bpe
from mdi.model.tokenizer import Tokenizer, TokenizerSettings, library_errors

NAMES = MappingProxyType({"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"})
TEMPLATE = "tokenizer.chat_template"
# Of Phi-3's control tokens all but these swallow the white space after them: its tokenizer.json says so, and GGUF has no word for it.
PHI3_NOT_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")


def read_tokenizer(gguf: Gguf, config: ModelConfig) -> Tokenizer:
    """Raises ModelError for a tokenizer that is damaged or of a kind that is not known."""
    origin = f"the tokenizer of {gguf.path}"
    model = gguf.fields.text(f"{PREFIX}.model")
    if model not in BUILDERS:
        raise ModelError(
            f"{origin} is of the kind {model!r:.80}, which is not supported",
            hint=f"choose a model whose tokenizer is one of: {', '.join(BUILDERS)}",
        )
    vocabulary = Vocabulary.read(gguf.metadata, origin)
    with library_errors(f"{origin} cannot be used"):
        backend, adds_bos = BUILDERS[model](gguf, vocabulary, origin)
        _add_tokens(backend, vocabulary, phi3=model == "llama" and gguf.architecture == "phi3")
    return Tokenizer(backend, config, _settings(gguf, vocabulary, adds_bos), origin)


def read_chat(gguf: Gguf, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The file's chat template; None for a model that has none."""
    if TEMPLATE not in gguf.metadata:
        return None
    return ChatTemplate(gguf.fields.text(TEMPLATE), tokenizer.named_tokens, str(gguf.path))


def _sentencepiece(gguf: Gguf, vocabulary: Vocabulary, origin: str) -> tuple[Backend, bool]:
    if vocabulary.scores is None:
        raise ModelError(f"{origin} lacks its scores ('{PREFIX}.scores')", hint="download the model again")
    pieces = {text: token_id for token_id, text in enumerate(vocabulary.texts)}
    scores = {text: float(vocabulary.scores[token_id]) for token_id, text in vocabulary.of_kind(Kind.NORMAL)}
    unknown = special_id(gguf.fields, "unknown")
    backend = sentencepiece_bpe(
        pieces,
        scores,
        unknown=None if unknown is None else vocabulary.texts[unknown],
        byte_fallback=any(True for _ in vocabulary.of_kind(Kind.BYTE)),
        prefix=gguf.fields.boolean(f"{PREFIX}.add_space_prefix", True),
        origin=origin,
    )
    return backend, True


def _byte_level(gguf: Gguf, vocabulary: Vocabulary, origin: str) -> tuple[Backend, bool]:
    name = gguf.fields.text(f"{PREFIX}.pre") if f"{PREFIX}.pre" in gguf.metadata else None
    words = pre_tokenizer(name, origin)
    pieces = {text: token_id for token_id, text in enumerate(vocabulary.texts)}
    backend = Backend(
        models.BPE(
            vocab=pieces, merges=_merges(gguf.metadata.texts(f"{PREFIX}.merges"), origin), ignore_merges=words.whole_words
        )
    )
    backend.pre_tokenizer = words.build()
    backend.decoder = decoders.ByteLevel()
    return backend, words.adds_bos


BUILDERS: Mapping[str, Callable[[Gguf, Vocabulary, str], tuple[Backend, bool]]] = MappingProxyType(
    {"llama": _sentencepiece, "gpt2": _byte_level}
)
"""Each gives the tokenizer without special tokens, and whether prompts begin with one where the file does not say."""


def _merges(texts: list[str], origin: str) -> list[tuple[str, str]]:
    """`a b` is two pieces. A piece may begin with a space in old files, so the one that parts them is not the first character."""
    merges = []
    for text in texts:
        at = text.find(" ", 1)
        if at < 0:
            raise ModelError(f"{origin} has the merge {text!r:.80}, which is not two pieces", hint="download the model again")
        merges.append((text[:at], text[at + 1 :]))
    return merges


def _add_tokens(backend: Backend, vocabulary: Vocabulary, *, phi3: bool) -> None:
    """Tokens that are found in a text before it is split: control tokens, and those that a user of the model's maker defined."""
    special = [
        AddedToken(text, normalized=False, rstrip=phi3 and text not in PHI3_NOT_SWALLOWING)
        for _, text in vocabulary.of_kind(Kind.CONTROL, Kind.UNKNOWN)
    ]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(text, normalized=False) for _, text in vocabulary.of_kind(Kind.USER_DEFINED)])


def _settings(gguf: Gguf, vocabulary: Vocabulary, adds_bos: bool) -> TokenizerSettings:
    fields = gguf.fields
    ids = {name: special_id(fields, name) for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
    named = {name: vocabulary.texts[token_id] for key, name in NAMES.items() if (token_id := ids[key]) is not None}
    ends = {token_id for key in ("eos", "eot", "eom") if (token_id := ids[key]) is not None}
    return TokenizerSettings(named, {}, frozenset(ends), fields.boolean(f"{PREFIX}.add_bos_token", adds_bos))
