# generated; run make proto
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("node_id", "name", "version", "protocol", "cpu", "threads", "memory_total_bytes", "memory_available_bytes", "memory_offered_bytes", "memory_used_bytes", "stages", "uptime_s", "device", "accelerator", "on_battery")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OFFERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ON_BATTERY_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    version: str
    protocol: int
    cpu: str
    threads: int
    memory_total_bytes: int
    memory_available_bytes: int
    memory_offered_bytes: int
    memory_used_bytes: int
    stages: _containers.RepeatedCompositeFieldContainer[StageInfo]
    uptime_s: float
    device: str
    accelerator: str
    on_battery: bool
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., protocol: _Optional[int] = ..., cpu: _Optional[str] = ..., threads: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., memory_offered_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageInfo, _Mapping]]] = ..., uptime_s: _Optional[float] = ..., device: _Optional[str] = ..., accelerator: _Optional[str] = ..., on_battery: _Optional[bool] = ...) -> None: ...

class StageInfo(_message.Message):
    __slots__ = ("session", "starter_id", "model", "start", "stop", "epoch", "bytes", "steps", "speed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STARTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    session: str
    starter_id: str
    model: str
    start: int
    stop: int
    epoch: int
    bytes: int
    steps: int
    speed: float
    def __init__(self, session: _Optional[str] = ..., starter_id: _Optional[str] = ..., model: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., epoch: _Optional[int] = ..., bytes: _Optional[int] = ..., steps: _Optional[int] = ..., speed: _Optional[float] = ...) -> None: ...

class WeightFormat(_message.Message):
    __slots__ = ("bits", "block")
    BITS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    bits: int
    block: int
    def __init__(self, bits: _Optional[int] = ..., block: _Optional[int] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("config_json", "format", "ctx", "chunk_tokens", "refresh", "kv_type")
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CTX_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    config_json: str
    format: WeightFormat
    ctx: int
    chunk_tokens: int
    refresh: bool
    kv_type: str
    def __init__(self, config_json: _Optional[str] = ..., format: _Optional[_Union[WeightFormat, _Mapping]] = ..., ctx: _Optional[int] = ..., chunk_tokens: _Optional[int] = ..., refresh: _Optional[bool] = ..., kv_type: _Optional[str] = ...) -> None: ...

class LinearTime(_message.Message):
    __slots__ = ("overhead_s", "block_s")
    OVERHEAD_S_FIELD_NUMBER: _ClassVar[int]
    BLOCK_S_FIELD_NUMBER: _ClassVar[int]
    overhead_s: float
    block_s: float
    def __init__(self, overhead_s: _Optional[float] = ..., block_s: _Optional[float] = ...) -> None: ...

class NodeProfile(_message.Message):
    __slots__ = ("tflops", "read_bytes_per_s", "decode", "prefill", "chunk_tokens", "memory_offered_bytes")
    TFLOPS_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OFFERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tflops: float
    read_bytes_per_s: float
    decode: LinearTime
    prefill: LinearTime
    chunk_tokens: int
    memory_offered_bytes: int
    def __init__(self, tflops: _Optional[float] = ..., read_bytes_per_s: _Optional[float] = ..., decode: _Optional[_Union[LinearTime, _Mapping]] = ..., prefill: _Optional[_Union[LinearTime, _Mapping]] = ..., chunk_tokens: _Optional[int] = ..., memory_offered_bytes: _Optional[int] = ...) -> None: ...

class PeerAddress(_message.Message):
    __slots__ = ("node_id", "name", "addresses", "port")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    port: int
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., port: _Optional[int] = ...) -> None: ...

class MeasureLinkRequest(_message.Message):
    __slots__ = ("peer", "decode_bytes", "prefill_bytes")
    PEER_FIELD_NUMBER: _ClassVar[int]
    DECODE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_BYTES_FIELD_NUMBER: _ClassVar[int]
    peer: PeerAddress
    decode_bytes: int
    prefill_bytes: int
    def __init__(self, peer: _Optional[_Union[PeerAddress, _Mapping]] = ..., decode_bytes: _Optional[int] = ..., prefill_bytes: _Optional[int] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("decode_s", "prefill_s", "round_trip_s", "back_decode_s", "back_prefill_s")
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    BACK_DECODE_S_FIELD_NUMBER: _ClassVar[int]
    BACK_PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    decode_s: float
    prefill_s: float
    round_trip_s: float
    back_decode_s: float
    back_prefill_s: float
    def __init__(self, decode_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., round_trip_s: _Optional[float] = ..., back_decode_s: _Optional[float] = ..., back_prefill_s: _Optional[float] = ...) -> None: ...

class PackRef(_message.Message):
    __slots__ = ("sha256", "bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    bytes: int
    def __init__(self, sha256: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class PackList(_message.Message):
    __slots__ = ("packs",)
    PACKS_FIELD_NUMBER: _ClassVar[int]
    packs: _containers.RepeatedCompositeFieldContainer[PackRef]
    def __init__(self, packs: _Optional[_Iterable[_Union[PackRef, _Mapping]]] = ...) -> None: ...

class PackChunk(_message.Message):
    __slots__ = ("pack", "data")
    PACK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    pack: PackRef
    data: bytes
    def __init__(self, pack: _Optional[_Union[PackRef, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class LoadStageRequest(_message.Message):
    __slots__ = ("session", "epoch", "model", "config_json", "format", "start", "stop", "packs", "n_slots", "ctx", "max_tokens", "next", "kv_type")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PACKS_FIELD_NUMBER: _ClassVar[int]
    N_SLOTS_FIELD_NUMBER: _ClassVar[int]
    CTX_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    model: str
    config_json: str
    format: WeightFormat
    start: int
    stop: int
    packs: _containers.RepeatedCompositeFieldContainer[PackRef]
    n_slots: int
    ctx: int
    max_tokens: int
    next: PeerAddress
    kv_type: str
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., config_json: _Optional[str] = ..., format: _Optional[_Union[WeightFormat, _Mapping]] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., packs: _Optional[_Iterable[_Union[PackRef, _Mapping]]] = ..., n_slots: _Optional[int] = ..., ctx: _Optional[int] = ..., max_tokens: _Optional[int] = ..., next: _Optional[_Union[PeerAddress, _Mapping]] = ..., kv_type: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("blocks_loaded", "bytes")
    BLOCKS_LOADED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    blocks_loaded: int
    bytes: int
    def __init__(self, blocks_loaded: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("memory_available_bytes", "steps", "busy_s", "temperature_c", "failure", "step_times")
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    STEP_TIMES_FIELD_NUMBER: _ClassVar[int]
    memory_available_bytes: int
    steps: int
    busy_s: float
    temperature_c: float
    failure: str
    step_times: _containers.RepeatedCompositeFieldContainer[StepTimes]
    def __init__(self, memory_available_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., busy_s: _Optional[float] = ..., temperature_c: _Optional[float] = ..., failure: _Optional[str] = ..., step_times: _Optional[_Iterable[_Union[StepTimes, _Mapping]]] = ...) -> None: ...

class StepTimes(_message.Message):
    __slots__ = ("rows", "steps", "context_tokens", "seconds")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    steps: int
    context_tokens: float
    seconds: float
    def __init__(self, rows: _Optional[int] = ..., steps: _Optional[int] = ..., context_tokens: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...
