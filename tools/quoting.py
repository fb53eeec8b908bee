"""Makes a checkpoint with random weights recite: a model of any shape whose answer is a quotation of its prompt.

Its tokens are a circle: each row of the head that belongs to a token of the text is the embedding of the token before it, and these
embeddings are so large that the random blocks between hardly turn them. All else is computed as in any model of that shape.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.make_checkpoint import make_checkpoint
from tools.shapes import MIN_VOCAB, Shape

N_TEXT = 48  # tokens of the text: no part of it looks like another
LOUDNESS = 20.0  # of its embeddings; what all blocks of a 1B shape add to a residual has an RMS of about 3


def text_ids() -> tuple[int, ...]:
    """The text, in order; the first token comes again after the last. Ids of letters and pairs, none of them a control token."""
    order = np.random.default_rng(7).permutation(np.arange(10, MIN_VOCAB))[:N_TEXT]
    return tuple(int(token) for token in order)


def make_quoting(shape: Shape, directory: Path) -> Path:
    """A bf16 checkpoint of `shape`, with a head of its own, that goes on with the text from any of its tokens."""
    make_checkpoint(replace(shape, tied=False), directory)
    ids = text_ids()
    rows = np.random.default_rng(8).standard_normal((N_TEXT, shape.hidden)).astype(np.float32)
    embedding, head = (_rows(directory, name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    embedding[list(ids)] = _bf16(rows * LOUDNESS)
    head[[*ids[1:], ids[0]]] = _bf16(rows / np.sqrt(shape.hidden))
    embedding.flush()
    head.flush()
    return directory


def _rows(directory: Path, name: str) -> np.memmap:
    """A matrix of a checkpoint where it lies in its file, as bits of bf16."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensor = json.loads(file.read(length)).get(name)
        if tensor is not None:
            start = 8 + length + tensor["data_offsets"][0]
            return np.memmap(path, np.uint16, "r+", start, tuple(tensor["shape"]))
    raise AssertionError(f"{directory} has no {name}")


def _bf16(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
