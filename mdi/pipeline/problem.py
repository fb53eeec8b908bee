"""From the nodes that answered to the planner's input: what each can do with this model, and each link."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from mdi.engine.backend import AUTO, CPU, ONNX, Backend, choose_backend
from mdi.engine.protocol import StageShape
from mdi.engine.thread import EngineThread
from mdi.errors import MdiError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import Model
from mdi.node.measure import Measurer
from mdi.node.stage import RESIDENT_FACTOR, STAGE_BYTES
from mdi.pipeline.api import OnProgress, Progress, StarterOptions
from mdi.pipeline.matrix import measure_matrix
from mdi.pipeline.survey import House, Neighbour
from mdi.plan.costs import UNREACHABLE, LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.profile.attention import ContextTime
from mdi.profile.blocks import LinearTime
from mdi.profile.condition import on_battery
from mdi.profile.device import DeviceInfo
from mdi.profile.memory import offered_bytes
from mdi.wire import mdi_pb2 as pb

DEFAULT_CTX = 4096
FRAME_BYTES = 1 << 20  # facts/grpc.md: larger frames hold up everything else on the connection
MIN_CHUNK, MAX_CHUNK = 32, 256  # int4 kernels reach 94 % of their speed at 32 rows


def ctx_of(asked: int | None, config: ModelConfig) -> int:
    """The context in tokens: what `--ctx` asks for, within what the model has."""
    return min(asked or DEFAULT_CTX, config.max_positions)


def ctx_notices(asked: int | None, config: ModelConfig) -> tuple[str, ...]:
    """What the user should know about the context that was chosen."""
    if asked is None or asked <= config.max_positions:
        return ()
    return (f"--ctx {asked} is more than the model has: the context is {config.max_positions} tokens",)


@dataclass(frozen=True, slots=True)
class Workload:
    """What every node is asked to be able to hold and is measured for."""

    config: ModelConfig
    fmt: WeightFormat
    ctx: int
    n_slots: int
    chunk_tokens: int
    block_bytes: int
    head_bytes: int
    kv_type: KvType

    @classmethod
    def of(cls, model: Model, options: StarterOptions) -> Workload:
        config, fmt = model.config, model.weight_format(options.quant, options.block)
        kv_type = chosen_kv_type(options.quant, options.kv_type)
        return cls.of_shape(config, fmt, options.ctx, options.n_slots, model.packed_bytes(options.quant, fmt), kv_type)

    @classmethod
    def of_shape(
        cls,
        config: ModelConfig,
        fmt: WeightFormat,
        ctx: int | None,
        n_slots: int,
        packed_bytes: tuple[int, int],
        kv_type: KvType,
    ) -> Workload:
        """`packed_bytes` are those of the largest block and of the head; `ctx` None takes the model's own, at most DEFAULT_CTX."""
        ctx = ctx_of(ctx, config)
        chunk = max(MIN_CHUNK, min(MAX_CHUNK, FRAME_BYTES // (4 * config.d_model)))
        return cls(config, fmt, ctx, n_slots, min(chunk, ctx), *packed_bytes, kv_type)

    @property
    def decode_bytes(self) -> int:
        return 4 * self.config.d_model + 128

    @property
    def prefill_bytes(self) -> int:
        return self.chunk_tokens * 4 * self.config.d_model + 128

    def kv_bytes_per_token(self, backend: Backend) -> int:
        """Of one block, as that backend keeps it."""
        return StageShape(1, 1, 1, backend.kv_type(self.kv_type)).kv_bytes(self.config, 1)

    def model_cost(self) -> ModelCost:
        windowed = len(self.config.windowed_blocks) / self.config.n_blocks
        return ModelCost(
            n_blocks=self.config.n_blocks,
            block_bytes=self.block_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token(ONNX),
            ctx=self.ctx,
            slots=self.n_slots,
            stage_bytes=STAGE_BYTES + StageShape(self.n_slots, self.ctx, 1, self.kv_type).step_bytes(self.config),
            chunk_tokens=self.chunk_tokens,
            resident_factor=RESIDENT_FACTOR,
            window_tokens=self.config.sliding_window if windowed else None,
            windowed_share=windowed,
        )

    def node_cost(
        self,
        node_id: str,
        name: str,
        memory_bytes: int,
        decode: StageTime,
        prefill: StageTime,
        *,
        on_battery: bool,
        backend: Backend,
    ) -> NodeCost:
        """A node's measured times, with what a longer context adds to them."""
        kv_bytes_per_token = self.kv_bytes_per_token(backend)
        more = ContextTime.of(
            self.config,
            self.fmt,
            kv_bytes_per_token=kv_bytes_per_token,
            decode_block_s=decode.block_s,
            prefill_block_s=prefill.block_s,
            chunk_tokens=self.chunk_tokens,
        )
        return NodeCost(
            node_id,
            name,
            memory_bytes,
            decode,
            prefill,
            on_battery=on_battery,
            decode_kv_s=more.decode_s,
            prefill_kv_s=more.prefill_s,
            kv_bytes_per_token=kv_bytes_per_token,
        )


def chosen_kv_type(quant: Quant, wanted: KvType | None) -> KvType:
    """`wanted`, or else 8 bits; weights in fp32 are there to be exact, and so is their KV."""
    return wanted or (KvType.FP32 if quant is Quant.NONE else KvType.INT8)


async def draw_problem(
    house: House, workload: Workload, options: StarterOptions, engine: EngineThread, on_progress: OnProgress
) -> Problem:
    """Measures what is not known yet. A worker that fails on the way is left out and listed in `house.problems`."""
    threads = starter_threads(house, options)
    backend = starter_backend(house, options)
    measurer = Measurer(house.home.profiles_path, engine, threads, backend)
    refresh = options.refresh_profiles
    label = "measuring the nodes"
    total = len(house.others) + 1
    on_progress(Progress("profile", label, 0, total))
    blocks = await measurer.blocks(
        workload.config,
        workload.fmt,
        ctx=workload.ctx,
        chunk_tokens=workload.chunk_tokens,
        kv_type=workload.kv_type,
        refresh=refresh,
    )
    head = await measurer.head(workload.config, workload.fmt, refresh=refresh)
    on_progress(Progress("profile", label, 1, total))
    starter = workload.node_cost(
        house.node_id,
        _own_name(house),
        _own_memory(house, options, backend),
        _time(blocks.decode),
        _time(blocks.prefill),
        on_battery=on_battery(),
        backend=backend,
    )

    profiles = await _profile_others(
        house, workload, refresh, lambda done: on_progress(Progress("profile", label, 1 + done, total))
    )
    workers = [worker_cost(workload, neighbour.info, profile) for neighbour, profile in profiles]
    links = await _links(house, [neighbour for neighbour, _ in profiles], workload, refresh, on_progress)
    head_bytes = int(RESIDENT_FACTOR * workload.head_bytes)
    return Problem(
        workload.model_cost(),
        (starter, *workers),
        StarterCost(head.decode_s, head.decode_s, head_bytes),
        links,
    )


def starter_threads(house: House, options: StarterOptions) -> int:
    """As many as its own daemon was given, unless this command says otherwise."""
    return options.threads or (house.own.info.threads if house.own else DeviceInfo.of_this_device().usable_cores)


def starter_backend(house: House, options: StarterOptions) -> Backend:
    """What its own daemon computes on, unless this command says otherwise. Raises UserError when it is not there."""
    return choose_backend(options.device or (house.own.info.device if house.own else "") or AUTO)


async def _profile_others(house: House, workload: Workload, refresh: bool, on_done) -> list[tuple[Neighbour, pb.NodeProfile]]:  # type: ignore[no-untyped-def]
    """Devices measure at the same time; nodes that share a device, one after another."""
    done: list[tuple[Neighbour, pb.NodeProfile]] = []

    async def one_device(neighbours: list[Neighbour]) -> None:
        for neighbour in neighbours:
            try:
                profile = await neighbour.peer.profile(
                    workload.config,
                    workload.fmt,
                    ctx=workload.ctx,
                    chunk_tokens=workload.chunk_tokens,
                    kv_type=workload.kv_type,
                    refresh=refresh,
                )
            except MdiError as error:
                house.drop(neighbour, str(error))
            else:
                done.append((neighbour, profile))
            on_done(len(done))

    by_device = itertools.groupby(sorted(house.others, key=_device), key=_device)
    await asyncio.gather(*[one_device(list(group)) for _, group in by_device])
    return sorted(done, key=lambda each: each[0].info.node_id)


def worker_cost(workload: Workload, info: pb.NodeInfo, profile: pb.NodeProfile) -> NodeCost:
    """Another node, by what it says of itself and measured. An empty `device` is that of nodes that know only CPUs."""
    device = info.device or CPU
    return workload.node_cost(
        info.node_id,
        info.name,
        profile.memory_offered_bytes,
        StageTime(profile.decode.overhead_s, profile.decode.block_s),
        StageTime(profile.prefill.overhead_s, profile.prefill.block_s),
        on_battery=info.on_battery,
        backend=ONNX if device == CPU else Backend(device, info.accelerator or None, "torch"),
    )


def _device(neighbour: Neighbour) -> str:
    return neighbour.member.addresses[0]


async def _links(
    house: House, workers: list[Neighbour], workload: Workload, refresh: bool, on_progress: OnProgress
) -> dict[tuple[str, str], LinkCost]:
    """Every ordered pair, at the sizes of this model's frames."""
    matrix = await measure_matrix(house, workers, refresh, on_progress)
    house.notices += matrix.problems()
    costs = {}
    for (sender, _), (receiver, _) in matrix.ordered():
        times = matrix.times(sender, receiver)
        costs[sender, receiver] = (
            UNREACHABLE
            if times is None
            else LinkCost(times.seconds(workload.decode_bytes), times.seconds(workload.prefill_bytes))
        )
    return costs


def _own_name(house: House) -> str:
    return house.own.info.name if house.own else "this device"


def _own_memory(house: House, options: StarterOptions, backend: Backend) -> int:
    """What the starter may take: what its own daemon offers of the same memory, within what the user allows this command."""
    if house.own is None or (house.own.info.device or CPU) != backend.device:
        return offered_bytes(options.max_memory_bytes, 0, backend)
    offered = house.own.info.memory_offered_bytes
    return offered if options.max_memory_bytes is None else min(offered, options.max_memory_bytes)


def _time(time: LinearTime) -> StageTime:
    return StageTime(time.overhead_s, time.block_s)
