"""What rounding weights, and keys and values, costs: perplexity of a model in every precision, beside fp32, through the real engine.

    python -m tools.perplexity                                     # the demo model over its held-out dialogues
    python -m tools.perplexity ~/models/SmolLM2-135M               # over text that the fp32 model speaks itself
    python -m tools.perplexity MODEL --text FILE --quant int4 --block 32 64 128 --json
    python -m tools.perplexity --quant none int4 --kv-type fp32 int8

KL is the mean of sum(p log(p / q)) over tokens, p of fp32: it is the logarithm of the perplexities' ratio without the chance of the text.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdi.engine.observe import BlockObserver
from mdi.engine.onnx_engine import Head, OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.errors import MdiError
from mdi.model.kv import KvType
from mdi.model.packed import Embedding, open_packs, prepare
from mdi.model.packs import open_pack
from mdi.model.quantise import DEFAULT_BLOCK, Quant
from mdi.model.source import Model, resolve
from mdi.profile.device import DeviceInfo
from mdi.wire.frame import Row
from tools.perplexity_text import Text, dialogues, own_words, pieces

CHUNK_TOKENS = 256
Choice: TypeAlias = tuple[Quant, int, KvType]  # the block size means nothing to Quant.NONE


@dataclass(frozen=True, slots=True)
class Result:
    """One precision. `kl` and `same_top` (how often the likeliest token is fp32's) are against fp32."""

    name: str
    perplexity: float
    kl: float
    same_top: float
    pack_bytes: int
    convert_s: float
    read_bytes_per_s: float  # of the checkpoint, while converting

    def line(self, fp32: Result) -> str:
        change = self.perplexity / fp32.perplexity - 1
        return (
            f"{self.name:26}{self.perplexity:12.4f}{change:+9.2%}{self.kl:10.5f}{self.same_top:10.2%}"
            f"{self.pack_bytes / 2**20:10.1f}{self.convert_s:8.1f}{self.read_bytes_per_s / 1e9:8.2f}"
        )


HEADER = f"{'':26}{'perplexity':>12}{'change':>9}{'KL':>10}{'same top':>10}{'MiB':>10}{'conv. s':>8}{'GB/s':>8}"


class Loaded:
    """A whole model in one precision."""

    def __init__(self, model: Model, quant: Quant, block: int, directory: Path, shape: StageShape) -> None:
        start = time.perf_counter()
        weights, fmt = model.weights(quant), model.weight_format(quant, block)
        observer, scales = BlockObserver(model.config, shape.threads), shape.kv_type is KvType.INT8
        packed = prepare(weights, fmt, directory, observer=observer, weighed=quant.weighed, kv_scales=scales)
        self.convert_s = time.perf_counter() - start
        self.pack_bytes = sum(ref.n_bytes for ref in (*packed.blocks, packed.head))
        self._engine = OnnxEngine(packed.config, open_packs(packed, directory, 0, packed.config.n_blocks), shape, 0)
        self._head = Head(packed.config, open_pack(directory / packed.head.filename), shape.threads)
        self._embedding = Embedding(open_pack(directory / packed.embedding.filename), packed.config.embedding_scale)

    def logits(self, rows: Sequence[Row], token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._head.logits(self._engine.forward(rows, self._embedding.rows(list(token_ids))))

    def log_probabilities(self, token_ids: Sequence[int]) -> Iterable[NDArray[np.float32]]:
        """Of every next token after each of `token_ids` but the last, in chunks [T, vocab_size]."""
        inputs = token_ids[:-1]
        for start in range(0, len(inputs), CHUNK_TOKENS):
            chunk = inputs[start : start + CHUNK_TOKENS]
            yield log_softmax(self.logits([Row(0, start, len(chunk), 0)], chunk))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


class Reference:
    """fp32's log-probabilities of a text, kept in a temporary file: a vocabulary wide for every token, they may not fit memory."""

    def __init__(self, text: Text, vocab_size: int, directory: Path) -> None:
        self._text = text
        self._shape = (sum(len(ids) - 1 for ids in text.sequences), vocab_size)
        self._path = directory / "fp32"

    def keep(self, loaded: Loaded) -> None:
        with self._path.open("wb") as file:
            for ids in self._text.sequences:
                for chunk in loaded.log_probabilities(ids):
                    file.write(chunk.data.cast("B"))

    def measure(self, name: str, loaded: Loaded, source_bytes: int) -> Result:
        kept = np.memmap(self._path, np.float32, "r", shape=self._shape)
        position, nats, kl, same = 0, 0.0, 0.0, 0
        for ids, scored in zip(self._text.sequences, self._text.scored, strict=True):
            at = 0
            for found in loaded.log_probabilities(ids):
                wanted = kept[position : position + len(found)]
                use = np.array(scored[at + 1 : at + 1 + len(found)])
                targets = np.array(ids[at + 1 : at + 1 + len(found)])
                nats -= float(found[np.arange(len(found)), targets][use].sum(dtype=np.float64))
                kl += float((np.exp(wanted) * (wanted - found)).sum(-1, dtype=np.float64)[use].sum())
                same += int((found.argmax(-1) == wanted.argmax(-1))[use].sum())
                position, at = position + len(found), at + len(found)
        n = self._text.n_scored
        speed = source_bytes / loaded.convert_s
        return Result(name, float(np.exp(nats / n)), kl / n, same / n, loaded.pack_bytes, loaded.convert_s, speed)


def measure(model: Model, text: Text, choices: Sequence[Choice], threads: int, show: Callable[[Result], None]) -> list[Result]:
    """fp32 and every choice in turn; each is shown as soon as it is known. Only one is in memory at a time."""
    ctx = max(len(ids) for ids in text.sequences)
    files = [model.source.gguf] if model.source.gguf else list(model.source.directory.glob("*.safetensors"))
    source_bytes = sum(path.stat().st_size for path in files)
    results = []
    with tempfile.TemporaryDirectory(prefix="mdi-perplexity-") as name:
        directory = Path(name)
        reference = Reference(text, model.config.vocab_size, directory)
        for quant, block, kv_type in [(Quant.NONE, DEFAULT_BLOCK, KvType.FP32), *choices]:
            label = str(quant) if quant is Quant.NONE else f"{quant} block {block}"
            label += "" if kv_type is KvType.FP32 else f" kv {kv_type}"
            loaded = Loaded(model, quant, block, directory / label, StageShape(1, ctx, threads, kv_type))
            if not results:
                reference.keep(loaded)
            results.append(reference.measure(label, loaded, source_bytes))
            show(results[-1])
            del loaded
    return results


def text_for(model: Model, args: argparse.Namespace) -> Text:
    if args.text is not None:
        return pieces(model, args.text.read_text(errors="replace"), args.tokens, args.length)
    if model.source.name == "demo":
        return dialogues(model, args.tokens)
    return spoken(model, -(-args.tokens // args.length), args.length, args.threads)


def spoken(model: Model, n_sequences: int, length: int, threads: int) -> Text:
    """What the model says by itself in fp32."""
    with tempfile.TemporaryDirectory(prefix="mdi-perplexity-") as name:
        loaded = Loaded(model, Quant.NONE, DEFAULT_BLOCK, Path(name), StageShape(n_sequences, length, threads))
        return own_words(model.config, loaded.logits, n_sequences, length)


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="demo", help="a built-in model, or the directory of a checkpoint")
    parser.add_argument("--quant", type=Quant, nargs="+", default=[Quant.INT8, Quant.INT4_PLAIN, Quant.INT4])
    parser.add_argument("--kv-type", type=KvType, choices=[KvType.FP32, KvType.INT8], nargs="+", default=[KvType.FP32])
    parser.add_argument("--block", type=int, nargs="+", default=[DEFAULT_BLOCK])
    parser.add_argument(
        "--text", type=Path, help="a file of text, in place of what the model is known to speak, or speaks itself"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="about how many tokens of text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence, where a text has no parts of its own")
    parser.add_argument("--threads", type=int, default=DeviceInfo.of_this_device().usable_cores)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        model = Model(resolve(args.model))
        text = text_for(model, args)
        choices = [
            (quant, block, kv_type)
            for quant in args.quant
            for block in (args.block if quant is not Quant.NONE else [DEFAULT_BLOCK])
            for kv_type in args.kv_type
            if (quant, kv_type) != (Quant.NONE, KvType.FP32)  # which all others are measured with
        ]
        if not args.json:
            show(f"{args.model}: {text.n_scored} tokens of {text.origin}\n{HEADER}")
        shown: list[Result] = []

        def line(result: Result) -> None:
            shown.append(result)
            if not args.json:
                show(result.line(shown[0]))

        results = measure(model, text, choices, args.threads, line)
    except MdiError as error:
        show(f"{error}" + (f" ({error.hint})" if error.hint else ""))
        return error.exit_code
    if args.json:
        show(json.dumps({"model": args.model, "text": text.origin, "results": [asdict(result) for result in results]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
