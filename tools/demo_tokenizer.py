"""The demo model's byte-level BPE tokenizer and its chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.demo_dialogues import conversation

BOS, END, SYSTEM, USER, ASSISTANT, PAD = "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL = (BOS, END, SYSTEM, USER, ASSISTANT, PAD)
# Digits stand alone; a letter after a hyphen ("s-t-o-n-e") and the comma between numbers are one token each.
PIECES = r"-\p{L}(?!\p{L})|\p{N}|, (?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s"
SAMPLE_CONVERSATIONS = 6000
LETTER_SKILLS = ("spelling", "reversing words")  # their made-up words would fill the vocabulary with chance syllables
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(prompt: str, history: tuple[tuple[str, str], ...] = ()) -> str:
    """What the chat template makes of earlier (user, assistant) pairs and a new prompt."""
    earlier = "".join(f"{USER}{asked}{END}{ASSISTANT}{answer}{END}" for asked, answer in history)
    return f"{BOS}{earlier}{USER}{prompt}{END}{ASSISTANT}"


def train_tokenizer(seed: int, vocab_size: int) -> Tokenizer:
    rng = random.Random(f"tokenizer {seed}")
    turns = [turn for _ in range(SAMPLE_CONVERSATIONS) for turn in conversation(rng)]
    texts = [text for t in turns for text in ((t.answer,) if t.skill in LETTER_SKILLS else (t.user, t.answer))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, special: str) -> int:
    found = tokenizer.token_to_id(special)
    assert found is not None, special
    return int(found)


def write_tokenizer(out: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
