"""A Hugging Face checkpoint on disk, read one tensor at a time: a 7B model is 13 GB, and a Raspberry Pi has 4."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.families import Role
from mdi.model.fields import Fields
from mdi.model.gptq_awq import Coding
from mdi.model.linear import Linear, LinearPart, Quantised, dequantise
from mdi.model.quantise import WeightFormat
from mdi.model.shards import AGAIN, FLOATS, Shard
from mdi.model.shards import StoredTensor as TensorPlace
from mdi.model.weights import StoredTable, StoredTensor

WEIGHT = ".weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAMPLE_BYTES = 4096  # of a tensor's start, middle and end that go into the fingerprint
MOST_MISSING = 1000  # counted, when tensors are missing
COMPARE_BYTES = 1 << 20  # at a time, when two tensors are compared


class Checkpoint:
    """The weights of one model (a `WeightSource`), checked against its config when opened, before anything is converted.

    Nothing is held but what the caller keeps, and views are memory-mapped. Tensors that the family does not name
    (such as `rotary_emb.inv_freq`) are ignored. Files must not change while it is open.
    """

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        shards: Mapping[str, Shard],
        coding: Coding | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """`exact`: whether GPTQ and AWQ matrices are given as their codes, or as the floats that they mean."""
        self.directory = directory
        self.config = config
        self.quantised = coding is not None and exact
        self._exact = exact
        self._coding = coding
        self._shards = MappingProxyType(dict(shards))
        self._where = {name: shard for shard in shards.values() for name in shard.tensors}
        self.embedding, self.head = self._embedding_and_head()
        """Tensor names; equal when the head is the embedding."""
        self.final_norm = config.family.final_norm
        self._check()

    @classmethod
    def open(cls, directory: Path, config: ModelConfig | None = None) -> Checkpoint:
        """Reads every header, no weights.

        Raises ModelError: no weights, a missing or truncated file, or a tensor that is missing, misshapen or of another type.
        """
        config = config or read_config(directory)
        shards = {name: Shard.open(directory / name) for name in _shard_names(directory)}
        return cls(directory, config, shards, Coding.find(directory))

    @property
    def head_is_embedding(self) -> bool:
        """What the files hold, which decides where `config.tied_head` says otherwise."""
        return self.head == self.embedding

    def block_tensors(self, block: int) -> dict[Role, str]:
        """Names of the tensors that one block has, by what they do; its experts' aside."""
        names = self.config.family.block_tensors(block)
        return {role: names[role] for role in self.config.block_shapes(block)}

    def expert_tensors(self, block: int, expert: int) -> dict[Role, str]:
        """Names of one expert's gate, up and down in a sparse block."""
        return self.config.family.expert_tensors(block, expert)

    def raw(self, name: str) -> tuple[NDArray[Any], str]:
        """A read-only view of the stored values, and their type: "F32", "F16", or "BF16" as uint16 bits."""
        shard = self._where[name]
        return shard.raw(name), shard.tensors[name].dtype

    def table(self, name: str) -> StoredTable:
        return self.raw(name)

    def as_floats(self) -> Checkpoint:
        return Checkpoint(self.directory, self.config, self._shards, self._coding, exact=False)

    def main_format(self) -> WeightFormat | None:
        parts = [part for name in self.block_tensors(0).values() for part in self.forms(name) or ()]
        largest = max(parts, key=lambda part: part.n_bytes, default=None)
        return None if largest is None else WeightFormat(largest.bits, largest.block)

    def forms(self, name: str) -> tuple[LinearPart, ...] | None:
        coded = self._coded(name)
        if self._coding is None or not coded or not self._exact:
            return None
        found = {kind: self._where[each].tensors[each] for kind, each in coded.items()}
        return (self._coding.part(name.removesuffix(WEIGHT), self._shapes[name], found),)

    def linear(self, name: str) -> Linear:
        """See `WeightSource`."""
        part = self._decoded(name)
        if part is None:
            return (self._where[name].floats(name),)
        return (part if self._exact else dequantise(part),)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The values in fp32, shaped as the config says; exact for every stored type. The array is the caller's own."""
        part = self._decoded(name)  # some tools quantise even routers
        return self._where[name].floats(name) if part is None else dequantise(part)

    def _decoded(self, name: str) -> Quantised | None:
        """A matrix that is stored as GPTQ's or AWQ's codes; None for one of floats."""
        coded = self._coded(name)
        if self._coding is None or not coded:
            return None
        arrays = {kind: self._where[each].read(each) for kind, each in coded.items() if kind != "scales"}
        arrays["scales"] = self._where[coded["scales"]].floats(coded["scales"])
        return self._coding.decode(name.removesuffix(WEIGHT), self._shapes[name], arrays)

    def norm(self, name: str) -> NDArray[np.float32]:
        """A norm's weight as it multiplies: some families' files leave out an offset."""
        return self.tensor(name) + np.float32(self.config.family.norm_offset)

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for these weights, the same wherever the files lie; 13 GB take seconds.

        Hashed are the config, every file's name, size and header, and 4 KiB from the start, middle and end of every tensor.
        Any training changes whole tensors, so it is seen; an edit of single bytes by hand between the samples is not.
        """
        digest = hashlib.sha256(self.config.to_json().encode())
        if self._coding is not None:
            digest.update(f"{self._coding} {self._exact}".encode())
        for name, shard in sorted(self._shards.items()):
            digest.update(f"\n{name} {shard.data.size}\n".encode())
            digest.update(shard.data[: shard.header_bytes].tobytes())
            for tensor in shard.tensors.values():
                middle = (tensor.start + tensor.stop) // 2
                for start in (tensor.start, middle, max(tensor.start, tensor.stop - SAMPLE_BYTES)):
                    digest.update(shard.data[start : min(start + SAMPLE_BYTES, tensor.stop)].tobytes())
        return digest.hexdigest()

    def inventory(self) -> Iterator[StoredTensor]:
        for shard in self._shards.values():
            for name, tensor in shard.tensors.items():
                yield StoredTensor(name, tensor.dtype, tensor.shape, tensor.stop - tensor.start)

    def _coded(self, name: str) -> dict[str, str]:
        """The tensors that stand for a matrix in GPTQ's or AWQ's form, by kind; none for one that is stored as floats."""
        if self._coding is None or name in self._where or not name.endswith(WEIGHT):
            return {}
        names = self._coding.tensor_names(name.removesuffix(WEIGHT))
        return {kind: each for kind, each in names.items() if each in self._where} if names["qweight"] in self._where else {}

    def _embedding_and_head(self) -> tuple[str, str]:
        """As transformers 5 ties: a config says tied, but two different tensors stay two, and one serves for a missing one."""
        embedding, head = self.config.family.embedding, self.config.family.head
        if not self.config.tied_head:
            return embedding, head
        if self._coded(head):
            return embedding, head
        if head not in self._where:
            return embedding, embedding
        if embedding not in self._where:
            return head, head
        return embedding, embedding if self._equal(embedding, head) else head

    def _equal(self, one: str, other: str) -> bool:
        found = [self._where[name].tensors[name] for name in (one, other)]
        if found[0].shape != found[1].shape or found[0].dtype != found[1].dtype or found[0].dtype not in FLOATS:
            return False  # of another type: refused when it is checked
        (a, _), (b, _) = self.raw(one), self.raw(other)
        a, b = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
        starts = range(0, a.size, COMPARE_BYTES)
        return all(np.array_equal(a[start : start + COMPARE_BYTES], b[start : start + COMPARE_BYTES]) for start in starts)

    def _check(self) -> None:
        absent = (name for name, shape in self._expected() if name not in self._where and not self._may_be_coded(name, shape))
        missing = list(itertools.islice(absent, MOST_MISSING))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"{self.directory} lacks the tensor {missing[0]}{more}", hint=AGAIN)
        self._shapes = MappingProxyType(dict(self._expected()))  # as many as there are tensors in the files
        for name, shape in self._shapes.items():
            if self._coding is not None and name not in self._where:
                found = {kind: self._where[each].tensors[each] for kind, each in self._coded(name).items()}
                self._coding.check(name.removesuffix(WEIGHT), shape, found)
            else:
                self._check_tensor(name, shape, self._where[name].tensors[name])

    def _may_be_coded(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether codes stand for it where they can: not for norms and biases, and not for the embedding, which is read by rows."""
        return len(shape) == 2 and name != self.embedding and bool(self._coded(name))

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor that the config promises, with its shape. A config may promise millions of experts: not to be listed."""
        config, matrix = self.config, (self.config.vocab_size, self.config.d_model)
        yield from ((self.embedding, matrix), (self.final_norm, (config.d_model,)), (self.head, matrix))
        for block in range(config.n_blocks):
            shapes = config.block_shapes(block)
            yield from ((name, shapes[role]) for role, name in self.block_tensors(block).items())
            if config.experts is not None and block in config.sparse_blocks:
                shapes = config.expert_shapes()
                for expert in range(config.experts.n_experts):
                    yield from ((name, shapes[role]) for role, name in self.expert_tensors(block, expert).items())

    def _check_tensor(self, name: str, shape: tuple[int, ...], found: TensorPlace) -> None:
        if found.shape != shape:
            raise ModelError(
                f"{name} in {self._where[name].path} has the shape {list(found.shape)}, but config.json means {list(shape)}",
                hint="config.json and the weights are of different models: download both again",
            )
        if found.dtype not in FLOATS:
            raise ModelError(
                f"{name} in {self._where[name].path} is stored as {found.dtype}; only {', '.join(FLOATS)} can be read",
                hint="use the model's fp16 or bf16 checkpoint; mdi quantises by itself",
            )


def read_config(directory: Path) -> ModelConfig:
    """The config of the checkpoint in `directory`. Raises ModelError when there is none or it cannot be run."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{directory} holds no config.json", hint="point --model at the directory of a Hugging Face checkpoint"
        )
    return ModelConfig.from_hf(Fields.read(path).values, str(path))


def _shard_names(directory: Path) -> list[str]:
    if (directory / SINGLE).exists():
        return [SINGLE]
    index = directory / INDEX
    if index.exists():
        weight_map = Fields.read(index).object("weight_map")
        names = sorted({weight_map.text(tensor) for tensor in weight_map.values}) if weight_map else []
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index} names {name!r:.80} as a file of weights, which is not a plain safetensors file name")
            if not (directory / name).exists():
                raise ModelError(f"{directory} lacks the file {name}, which {INDEX} names", hint=AGAIN)
        if names:
            return names
    if any((directory / name).exists() for name in PICKLED):
        raise ModelError(
            f"{directory} holds only pickled weights (pytorch_model.bin), and unpickling would run code from them",
            hint="choose a revision of the model with .safetensors files",
        )
    raise ModelError(f"{directory} holds no weights ({SINGLE} or {INDEX})", hint=AGAIN)
