"""The processes behind tools.llama_cpp: one that runs llama.cpp through its C interface, one that serves a part of it by RPC.

`model`: prints a line of JSON when the model is loaded and warm, then answers every line `{"prompt_tokens", "new_tokens", "sequences"}` on
standard input with a line of JSON; it ends with its input. `rpc-worker`: serves until its input ends. `quantise`: writes one file and ends.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import llama_cpp
import numpy as np

BATCH_TOKENS = 512
ALL_LAYERS = 999
LOG_ERROR = 4
CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
WARM_UP_TOKENS = (16, 4)


class Model:
    """A loaded model with room for `sequences` of `context_tokens` each; `measure` starts from an empty cache each time."""

    def __init__(
        self, path: Path, *, threads: int, context_tokens: int, sequences: int, flash_attention: int, rpc: list[str]
    ) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if rpc else 0
        if rpc:
            self._devices = (ctypes.c_void_p * (len(rpc) + 1))(*map(_rpc_device, rpc), None)
            self._split = (ctypes.c_float * llama_cpp.llama_max_devices())(*[1.0] * len(rpc))
            params.devices = ctypes.cast(self._devices, ctypes.c_void_p)  # unasked, it skips an RPC device that is a CPU
            params.tensor_split = self._split
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context_tokens * sequences  # divided among them
        settings.n_seq_max = sequences
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = flash_attention
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot make a context of {context_tokens} tokens")
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def measure(self, prompt_tokens: int, new_tokens: int, sequences: int = 1) -> dict[str, float]:
        """Seconds for a random prompt of each sequence (with the first token's logits), and for `new_tokens` greedy steps of all."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        prompts = np.random.default_rng(0).integers(0, self._vocab, (sequences, prompt_tokens))
        start = time.perf_counter()
        tokens = [self._prefill(sequence, prompt.tolist()) for sequence, prompt in enumerate(prompts)]
        prefilled = time.perf_counter()
        for position in range(prompt_tokens, prompt_tokens + new_tokens):
            tokens = self._step([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
        return {"prefill_s": prefilled - start, "decode_s": time.perf_counter() - prefilled}

    def _prefill(self, sequence: int, prompt: list[int]) -> int:
        """Computes the head for the last token only, and returns the likeliest next one."""
        last = len(prompt) - 1
        rows = [(token, position, sequence, position == last) for position, token in enumerate(prompt)]
        for first in range(0, len(rows), BATCH_TOKENS):
            likeliest = self._step(rows[first : first + BATCH_TOKENS])
        return likeliest[-1]

    def _step(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """One batch of (token, position, sequence, with logits): the likeliest next token after each row that has logits."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, with_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, with_logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if status := llama_cpp.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode failed with status {status}")
        return [self._likeliest(i) for i, row in enumerate(rows) if row[3]]

    def _likeliest(self, row: int) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), (self._vocab,))
        return int(logits.argmax())


def serve_model(args: argparse.Namespace, replies: TextIO) -> None:
    model = Model(
        args.gguf,
        threads=args.threads,
        context_tokens=args.context_tokens,
        sequences=args.sequences,
        flash_attention=args.flash_attention,
        rpc=args.rpc,
    )
    model.measure(*WARM_UP_TOKENS)
    system = llama_cpp.llama_print_system_info().decode()
    _reply(replies, {"version": llama_cpp.__version__, "system": system, "devices": args.rpc or ["CPU"]})
    for line in sys.stdin:
        _reply(replies, model.measure(**json.loads(line)))


def serve_rpc(endpoint: str, threads: int) -> None:
    """What llama.cpp's own `rpc-server` program does, which the wheel does not ship: the library's server on the CPU device."""
    registry, rpc = _library("ggml"), _library("ggml-rpc")
    registry.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(registry.ggml_backend_dev_by_type(CPU_DEVICE))
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start.restype = None
    # The server never returns: it gets a thread, and the main thread waits for the owner to close our input.
    threading.Thread(target=start, args=(endpoint.encode(), None, threads, 1, devices), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def quantise(source: Path, target: Path, file_type: int, threads: int) -> None:
    """With llama.cpp's own choice of each tensor's type for `file_type`, its `llama_ftype`. Codes of the source are rounded again."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type, threads, True
    if status := llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise SystemExit(f"llama.cpp cannot quantise {source}: status {status}")


def _rpc_device(endpoint: str) -> int:
    """The address of the one device that the RPC server at `endpoint` offers."""
    add = _library("ggml-rpc").ggml_backend_rpc_add_server
    add.argtypes, add.restype = [ctypes.c_char_p], ctypes.c_void_p
    device = _library("ggml-base").ggml_backend_reg_dev_get
    device.argtypes, device.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
    if not (registry := add(endpoint.encode())):
        raise SystemExit(f"no RPC worker answers at {endpoint}")
    address: int = device(registry, 0)
    return address


def _library(name: str) -> ctypes.CDLL:
    """One of the shared libraries in the package, already loaded by it or not."""
    path = Path(llama_cpp.__file__).parent / "lib" / f"lib{name}.so"
    if not path.exists():
        raise SystemExit(f"llama-cpp-python was built without lib{name}.so (CMAKE_ARGS=-DGGML_RPC=ON)")
    return ctypes.CDLL(str(path))


def _reply(replies: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=replies, flush=True)


@llama_cpp.llama_log_callback
def _log_errors(level: int, text: bytes, _data: Any) -> None:
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cores", required=True, help="comma-separated")
    roles = parser.add_subparsers(dest="role", required=True)
    model = roles.add_parser("model")
    model.add_argument("gguf", type=Path)
    model.add_argument("--context-tokens", type=int, required=True)
    model.add_argument("--sequences", type=int, default=1)
    model.add_argument("--flash-attention", type=int, required=True)
    model.add_argument("--rpc", nargs="*", default=[])
    roles.add_parser("rpc-worker").add_argument("endpoint")
    quantiser = roles.add_parser("quantise")
    quantiser.add_argument("source", type=Path)
    quantiser.add_argument("target", type=Path)
    quantiser.add_argument("file_type", type=int)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    llama_cpp.llama_log_set(_log_errors, None)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the library prints must not mix with the replies
    if args.role == "model":
        serve_model(args, replies)
    elif args.role == "quantise":
        quantise(args.source, args.target, args.file_type, args.threads)
    else:
        serve_rpc(args.endpoint, args.threads)


if __name__ == "__main__":
    main()
