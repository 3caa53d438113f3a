"""What a model will need on a device, before it is built: memory and time (docs/quantisation.md).

Weights are counted tensor by tensor as the scheme will store them. Time is modelled as the K-score
models it, from operations and bytes, but reading a prompt and saying an answer apart: the one is
bound by compute, the other by memory. A device's figures are what it reaches at its best, so a
real program is slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

from kolm_build.core.attached import SOFT, TOP, Mixed, Routing
from kolm_build.core.attached_files import VIRTUAL
from kolm_build.core.bounded import Params
from kolm_build.core.catalogue.algorithm import ALL_LINEAR
from kolm_build.core.cost import Config, Sizes, Tensors
from kolm_build.core.derivation import Param
from kolm_build.core.gated import Expert, Gated
from kolm_build.core.quantisation import (
    INT4,
    INT8,
    SCHEMES,
    Format,
    Grid,
    format_of,
    group_for,
    stored_tensors,
)
from kolm_build.core.safetensors import DTYPE_BYTES, TensorEntry
from kolm_build.core.sections import Quantise
from kolm_build.core.targets import Target
from kolm_build.core.weight_names import EMBEDDING, HEAD, Shape
from kolm_build.errors import DoesNotFitError, InvalidRecordError

PROGRAM_BYTES = 200_000_000
"""Memory of the program itself: the interpreter, the libraries, the tokenizer."""

PROMPT_TOKENS, ANSWER_TOKENS = 512, 128
"""The request that time and memory are told for."""

_US = 10**6
_SUFFIX = ".weight"
_FROZEN = (".down", ".up")
"""The ends of the names of what was trained by the stages whose adapters are mixed."""
_STORED = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a model needs on a device.

    Attributes:
        target: The device.
        basis: The node whose tensors were counted.
        parameters: Weights of the model, unpacked.
        weight_bytes: Their bytes as they will be stored.
        memory_bytes: What answering takes: the weights and a fifth more, the program, and the
            keys and values of the request.
        first_token_us: Modelled time until the first token of the answer.
        token_us: Modelled time of each further one.
    """

    target: Target
    basis: str
    parameters: int
    weight_bytes: int
    memory_bytes: int
    first_token_us: int
    token_us: int

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.memory_bytes <= self.target.free_bytes

    def check(self) -> None:
        """Refuse a model that cannot run on the device.

        Raises:
            DoesNotFitError: It needs more memory than there is.
        """
        if not self.fits:
            raise DoesNotFitError(
                f"the model does not fit {self.target.name}",
                where="memory",
                expected=f"at most {self.target.free_bytes} bytes, of {self.target.ram_bytes}",
                actual=f"{self.memory_bytes} bytes, {self.weight_bytes} of them weights",
                advice="Quantise it to fewer bits under [quantise], take a smaller base, or name"
                " the memory: --target NAME:8G. `kolm build --dry-run --target NAME` only says.",
            )

    def to_value(self) -> dict[str, object]:
        """The forecast as a JSON object."""
        return {
            "target": self.target.name,
            "basis": self.basis,
            "fits": self.fits,
            "ram_bytes": self.target.ram_bytes,
            "free_bytes": self.target.free_bytes,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "memory_bytes": self.memory_bytes,
            "prompt_tokens": PROMPT_TOKENS,
            "first_token_us": self.first_token_us,
            "token_us": self.token_us,
        }

    def lines(self) -> Iterator[str]:
        """The forecast for people."""
        verdict = "fits" if self.fits else "does not fit"
        yield f"{self.target.name} ({self.target.ram_bytes >> 20} MiB): {verdict}"
        yield f"  weights     {_megabytes(self.weight_bytes)} for {self.parameters} parameters"
        free = _megabytes(self.target.free_bytes)
        yield f"  memory      {_megabytes(self.memory_bytes)} of {free} that a program can have"
        first = f"after a prompt of {PROMPT_TOKENS} tokens"
        yield f"  first token {_milliseconds(self.first_token_us)} {first}"
        yield f"  each more   {_milliseconds(self.token_us)}"
        yield f"  counted from the node {self.basis}, at the best that the device can do"


def forecast(
    config: Config, tensors: Tensors, *, quantise: Quantise | None, target: Target, basis: str
) -> Forecast:
    """What the model of `config` and `tensors` will need on `target`.

    Args:
        config: Its configuration.
        tensors: Its tensors, not quantised yet.
        quantise: How it will be quantised; None where it ships as it is.
        target: The device.
        basis: The node that it is the output of.

    Raises:
        InvalidRecordError: The configuration lacks a size, or no group divides a layer.
    """
    sizes = Sizes.of(config, tensors)
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    if quantise is not None:
        sizes = replace(sizes, parameter_bytes=quantised_bytes(tensors, quantise))
    tokens = PROMPT_TOKENS + ANSWER_TOKENS
    memory = sizes.parameter_bytes * 6 // 5 + PROGRAM_BYTES + sizes.cache_row_bytes * tokens
    flops, moved = (count(PROMPT_TOKENS, 1) for count in (sizes.flops, sizes.bytes_moved))
    more_flops = sizes.flops(PROMPT_TOKENS, 1 + ANSWER_TOKENS) - flops
    more_moved = sizes.bytes_moved(PROMPT_TOKENS, 1 + ANSWER_TOKENS) - moved
    return Forecast(
        target=target,
        basis=basis,
        parameters=parameters,
        weight_bytes=sizes.parameter_bytes,
        memory_bytes=memory,
        first_token_us=_time_us(flops, moved, target),
        token_us=-(-_time_us(more_flops, more_moved, target) // ANSWER_TOKENS),
    )


def with_adapter(
    config: Config, tensors: Tensors, params: Params, mixed: Sequence[Params] = ()
) -> Tensors:
    """`tensors` with those that a stage will put beside them (ALG-23, ALG-24, MOE-46).

    Args:
        config: The model's configuration.
        tensors: Its tensors.
        params: The parameters of the stage.
        mixed: Those of the stages whose adapters it mixes.
    """
    given = dict(params)
    dtype = _STORED[str(given["adapter_dtype"])]
    shapes = _gated(tensors, given, mixed) if mixed else _beside(config, tensors, given)
    stored = {dict(one)["adapter_dtype"] for one in mixed}
    frozen = _STORED[str(stored.pop())] if len(stored) == 1 else "F32"
    found = {
        name: _entry(name, frozen if mixed and name.endswith(_FROZEN) else dtype, shape)
        for name, shape in shapes.items()
    }
    return {**tensors, **found}


def _entry(name: str, dtype: str, shape: Shape) -> TensorEntry:
    size = prod(shape) * DTYPE_BYTES[dtype]
    return TensorEntry(name=name, dtype=dtype, shape=shape, begin=0, end=size)


def _gated(
    tensors: Tensors, given: Mapping[str, Param], mixed: Sequence[Params]
) -> Mapping[str, Shape]:
    """Name and shape of what a stage that mixes the adapters of others puts beside the weights."""
    base = {name: tensor.shape for name, tensor in tensors.items()}
    size, depth = int(given["xlora_size"]), int(given["xlora_depth"])
    said = Gated(
        experts=tuple(Expert(rank=_rank(dict(one)), alpha=1) for one in mixed),
        top_k=int(given["top_k"]) or len(mixed),
        hidden_size=base[EMBEDDING][1],
        widths=(size,) * (depth - 1),
        target_modules=_targets(base, dict(mixed[0])),
    )
    return said.wanted(base)


def _rank(given: Mapping[str, Param]) -> int:
    """The rank of the LoRA that a stage with the parameters `given` writes (ADPT-24, ADPT-42)."""
    if "adalora_init_r" in given:
        return int(given["adalora_init_r"])
    return int(given["lora_r"]) * (2 if given["adapter"] in ("olora", "pissa") else 1)


def _targets(base: Mapping[str, Shape], given: Mapping[str, Param]) -> tuple[str, ...]:
    """The last names of the layers that a stage with the parameters `given` adapts, sorted."""
    names = str(given["target_modules"])
    if names != ALL_LINEAR:
        return tuple(sorted(names.split(",")))
    layers = {name for name, shape in base.items() if len(shape) == 2} - {EMBEDDING, HEAD}
    return tuple(sorted({name.removesuffix(_SUFFIX).rpartition(".")[2] for name in layers}))


def _beside(config: Config, tensors: Tensors, given: Mapping[str, Param]) -> Mapping[str, Shape]:
    """Name and shape of what a stage with the parameters `given` puts beside the weights."""
    if "virtual_tokens" in given:
        is_prefix = given["adapter"] == "prefix-tuning"
        sizes = Sizes.of(config, tensors)
        keys_and_values = sizes.layers * sizes.cache_width
        width = keys_and_values if is_prefix else tensors[EMBEDDING].shape[1]
        return {VIRTUAL: (int(given["virtual_tokens"]), width)}
    base = {name: tensor.shape for name, tensor in tensors.items()}
    experts = int(given["experts"])
    routing = Routing(
        experts=experts,
        top_k=int(given.get("top_k", experts)),
        routing=TOP if "top_k" in given else SOFT,
        rank=int(given["lora_r"]),
        alpha=int(given["lora_alpha"]),
    )
    return Mixed(routing=routing, target_modules=_targets(base, given)).wanted(base)


def quantised_bytes(tensors: Tensors, quantise: Quantise) -> int:
    """The bytes of `tensors` once they are quantised: codes, scales and what stays.

    Raises:
        InvalidRecordError: No group divides a layer.
    """
    params = dict(quantise.params)
    scheme, group = SCHEMES[quantise.scheme], int(params["group"])
    keep = str(params["keep"]).split("\n")
    embeddings = str(params["embeddings"])
    total = 0
    for name, tensor in tensors.items():
        layer = name.removesuffix(_SUFFIX)
        if name in (EMBEDDING, HEAD):
            total += _embedding_bytes(tensor, embeddings, tied=HEAD not in tensors)
        elif len(tensor.shape) != 2 or any(fnmatchcase(layer, glob) for glob in keep):
            total += tensor.end - tensor.begin
        else:
            grid = scheme.grid(tensor.shape[1], group=group)
            total += _stored_bytes(tensor, grid, format_of(grid, scheme.activations))
            if scheme.activations == "static":  # the scale of what the layer reads (QUANT-26)
                total += DTYPE_BYTES["F32" if grid.kind == "nvfp4" else tensor.dtype]
    return total


def _embedding_bytes(tensor: TensorEntry, choice: str, *, tied: bool) -> int:
    """An embedding, or a head of its own.

    A table of 4 bits has no form that others load, so `int4` is for a head that is not tied; a
    tied head of 8 bits has scales of its own beside the table.

    Raises:
        InvalidRecordError: A tied head cannot have 4 bits.
    """
    if choice == "keep":
        return tensor.end - tensor.begin
    rows, columns = tensor.shape
    if choice == "int4" and tied:
        raise InvalidRecordError(
            "the head is tied to the embedding, which has no form of 4 bits",
            where="quantise.embeddings",
            expected="int8 or keep",
            actual="int4",
        )
    if choice == "int4" and tensor.name == HEAD:
        grid = replace(INT4, group=group_for(columns))
        return _stored_bytes(tensor, grid, "pack-quantized")
    again = rows * DTYPE_BYTES[tensor.dtype] if tied else 0
    return _stored_bytes(tensor, INT8, "int-quantized") + again


def _stored_bytes(tensor: TensorEntry, grid: Grid, form: Format) -> int:
    rows, columns = tensor.shape
    stored = stored_tensors(grid, form, (rows, columns), scale_dtype=tensor.dtype)
    return sum(prod(one.shape) * DTYPE_BYTES[one.dtype] for one in stored.values())


def _time_us(flops: int, moved: int, target: Target) -> int:
    """Modelled time: what compute or memory takes, the longer, rounded up (KS-6)."""
    return max(-(-flops * _US // target.flops_per_s), -(-moved * _US // target.bytes_per_s))


def _megabytes(count: int) -> str:
    return f"{_tenths(count, 10**6)} MB"


def _milliseconds(count: int) -> str:
    return f"{_tenths(count, 1000)} ms" if count >= 1000 else f"{count} µs"


def _tenths(count: int, unit: int) -> str:
    """`count` in `unit`s, to the nearest tenth."""
    tenths = (10 * count + unit // 2) // unit
    return f"{tenths // 10}.{tenths % 10}"
