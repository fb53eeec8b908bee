"""Makers of small tokenizers of the kinds that models have, in the files that models come with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LINES = (
    "Once upon a time there was a small lighthouse on a rocky island, and its keeper told stories to the gulls.",
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind; it's 12 years old and weighs 34.5 kg!",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # three",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est le café? ¿Qué pasa, señor?",
    "你好，世界。こんにちは世界。안녕하세요 세계. Привет, мир! 🙂",
) * 8
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
# Of Llama 3, as its tokenizer.json has it: contractions, words, digits in threes, punctuation, newlines, spaces.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_byte_level(directory: Path, **settings: Any) -> Path:
    """tokenizer.json of the Llama 3 kind: byte-level BPE that adds <s> before prompts, with chat tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *CHAT_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<think>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    write_settings(directory, tokenizer_class="PreTrainedTokenizerFast", **named | settings)
    return directory


def make_sentencepiece(directory: Path, **settings: Any) -> Path:
    """tokenizer.model of the Llama 2 kind: BPE with byte fallback, spaces kept, text as it is."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        character_coverage=0.985,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    if settings:
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        write_settings(directory, tokenizer_class="LlamaTokenizer", **named | settings)
    return directory


def write_settings(directory: Path, **settings: Any) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
