"""How byte-level BPE splits text into words before merging, by the name that files give it (`tokenizer.ggml.pre`).

Patterns are those of the tokenizer.json files that the names stand for; llama.cpp (`src/llama-vocab.cpp`) lists the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, pre_tokenizers

from mdi.errors import ModelError

_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # it's, I'LL
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARKED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
DIGIT = r"\p{N}"


def _words(digits: str, letters: str = r"\p{L}", begun: str = _SHORTENED + "|") -> str:
    """The pattern of Llama 3 and its descendants: words with one character before, digits, punctuation, lines, spaces."""
    inner = r"\p{L}\p{N}" if letters == r"\p{L}" else letters.strip("[]") + r"\p{N}"
    return rf"{begun}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{inner}]+[\r\n]*|{_LINES}|{_SPACES}"


def _cased(digits: str, shortened: str = "") -> str:
    """The pattern of GPT-4o and Tekken: a word also ends where lower case turns to upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{_UPPER}*{_LOWER}+{shortened}|{start}{_UPPER}+{_LOWER}*{shortened}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Patterns that split one after another. `whole_words`: a word that is a token is taken as it is, without merges.

    `adds_bos`: whether prompts begin with the beginning-of-text token where the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = PreTokenizer((_words(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer((_words(DIGIT),))
_GPT2 = PreTokenizer((GPT2,))
_DIGITS_GPT2 = PreTokenizer((DIGIT, GPT2))
_GPT4O = PreTokenizer((_cased(r"\p{N}{1,3}", rf"{_SHORTENED}?"),))
_DEEPSEEK_V3 = PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", f"{_MARKED}|{_LINES}|{_SPACES}"))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3)
    | dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe"), PreTokenizer(_LLAMA3.patterns))
    | dict.fromkeys(("glm4",), PreTokenizer(_LLAMA3.patterns, whole_words=True))
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "stablelm2", "kormo"), _QWEN2)
    | {"qwen35": PreTokenizer((_words(DIGIT, r"[\p{L}\p{M}]"),))}
    | dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "trillion"), _GPT2)
    | dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS_GPT2)
    | {"tekken": PreTokenizer((_cased(DIGIT),), whole_words=True, adds_bos=True)}
    | dict.fromkeys(("gpt-4o", "llama4"), _GPT4O)
    | dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK_V3)
    | {"deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGIT))}
)


def pre_tokenizer(name: str | None, origin: str) -> PreTokenizer:
    """Raises ModelError for a name that is not known, or none: splitting as another model does gives wrong tokens, and unseen."""
    if name is None:
        raise ModelError(
            f"{origin} does not say how its tokenizer splits text ('tokenizer.ggml.pre'): it was converted before that was kept",
            hint="choose a newer conversion of the model",
        )
    if name not in PRE_TOKENIZERS:
        raise ModelError(
            f"{origin} has a tokenizer that splits text as {name!r:.80}, which is not supported",
            hint="use the model's Hugging Face checkpoint; its tokenizer.json says how",
        )
    return PRE_TOKENIZERS[name]
