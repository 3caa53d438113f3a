"""A `CompiledDecoder` from a model's files, where it knows all that they say (GEN-70, GEN-72).

What is refused here is not a bad model: whoever calls asks the network by torch, whose loader says
what is wrong where something is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from math import pi, prod

import numpy as np

from kolm_build.core.quantisation_config import LayerGroup
from kolm_build.core.safetensors import DTYPE_BYTES
from kolm_build.numerics import decoder_library
from kolm_build.numerics.decoder_library import (
    CODES,
    ELEMENTS,
    INTEGERS,
    MOST_WIDTH,
    PLAIN,
    QUANTISED,
    SCALES,
    Layer,
    Library,
    Matrix,
    Network,
    NetworkReader,
    QuantisedWeight,
)
from kolm_build.runtime.compiled import CompiledDecoder, joined_prefixes
from kolm_build.runtime.decoder_config import Rotary
from kolm_build.runtime.decoder_parts import EMBEDDING, HEAD, NORM, linears, norms, unfit
from kolm_build.runtime.decoder_settings import DecoderSettings
from kolm_build.runtime.decoder_speaker import speaker_by
from kolm_build.runtime.files import WEIGHTS, Extent, ModelFiles
from kolm_build.runtime.mapped import MappedTensor, map_file, mapped_tensors
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.reading import Floats
from kolm_build.runtime.speaker import Speaker

Tensors = Mapping[str, MappedTensor]

MOST_DOTS = 65536
"""Most columns of a group whose sum of products of integers 32 bits hold (NUM-134)."""

_FIELDS = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
"""The fields of a layer's matrices, by the ends of their names."""


def compiled_speaker(files: ModelFiles, *, threads: int) -> Speaker | None:
    """What answers without torch, in `portable-1`; None where torch must be asked.

    Args:
        files: The model's.
        threads: Compute threads; they change no bit.

    Raises:
        InvalidRecordError: There are no weights, or the tokenizer or the chat template is bad.
        KernelsMissingError: The library was compiled from other sources.
    """
    if not decoder_library.is_compiled():
        return None
    place = files.extent(WEIGHTS)
    return speaker_by(
        files,
        lambda files: _decoder_of(files, place, threads),
        read_by=lambda decoder: PromptCache(decoder.read_on, decoder.keep).read,
        join=joined_prefixes,
    )


def _decoder_of(files: ModelFiles, place: Extent, threads: int) -> CompiledDecoder:
    file = map_file(place.path, offset=place.offset, size=place.size)
    return compiled_decoder(files.table("config.json"), mapped_tensors(file), threads=threads)


def compiled_decoder(
    settings: Mapping[str, object],
    tensors: Tensors,
    *,
    isa: str | None = None,
    threads: int = 1,
) -> CompiledDecoder:
    """The `CompiledDecoder` of a network.

    Args:
        settings: What config.json says.
        tensors: Every tensor of the model, by name; they are used where they lie.
        isa: The instruction set; the machine's best if None. It changes no bit.
        threads: Compute threads; they change no bit.

    Raises:
        InvalidRecordError: A setting, name, shape or dtype is not one that it knows.
        KernelsMissingError: The library was compiled from other sources.
        MachineError: The machine has no such instruction set.
    """
    said = DecoderSettings.of(settings, (one.dtype for one in tensors.values()))
    if said.config.head_width > MOST_WIDTH:
        raise unfit("head_dim", said.config.head_width)
    library = Library()
    network, alive = _Described(said, tensors).network(library)
    reader = NetworkReader(library, network, alive, isa=isa, threads=threads)
    return CompiledDecoder(said.config, reader, said.dtype)


# ------------------------------------------------------------------------------------ description


class _Described:
    """A network as the library wants it described.

    Args:
        said: What its files say of it.
        tensors: Its file's.
    """

    def __init__(self, said: DecoderSettings, tensors: Tensors) -> None:
        self._config = said.config
        self._dtype = said.dtype
        aligned = {name: _aligned(one) for name, one in tensors.items()}
        self._alive: list[object] = [aligned]
        self._given = said.given(
            aligned, described=lambda one: (one.dtype, one.shape), is_sound=_is_sound
        )

    def network(self, library: Library) -> tuple[Network, list[object]]:
        """The network, and what must stay in memory with it."""
        config = self._config
        embedding = self._embedding()
        matrices = {name: self._linear(name, shape) for name, shape in linears(config).items()}
        places = {
            name: self._given.take(f"{name}.weight", (config.hidden,)).address
            for name in norms(config)
        }
        self._given.done()
        table = (Layer * config.layers)(
            *(_layer(number, matrices, places) for number in range(config.layers))
        )
        turns = frequencies(config.rotary, config.head_width, library)
        self._alive += [table, turns]
        return self._whole(table, turns, places[NORM], embedding, matrices[HEAD]), self._alive

    def _whole(
        self,
        table: ctypes.Array[Layer],
        turns: Floats,
        norm: int,
        embedding: Matrix,
        head: Matrix,
    ) -> Network:
        config = self._config
        return Network(
            vocabulary=config.vocabulary,
            hidden=config.hidden,
            inner=config.inner,
            layers=config.layers,
            heads=config.heads,
            key_heads=config.key_heads,
            width=config.head_width,
            frequencies=turns.ctypes.data,
            layer=table,
            norm=norm,
            embedding=embedding,
            head=head,
            element=ELEMENTS[self._dtype],
            eps=config.eps,
            scale=config.head_width**-0.5,
        )

    def _embedding(self) -> Matrix:
        shape = (self._config.vocabulary, self._config.hidden)
        group = self._given.group(EMBEDDING)
        if group is None:
            return self._plain(EMBEDDING, shape)
        if not group.grid.symmetric:
            raise unfit(EMBEDDING, group.grid)
        return self._quantised(EMBEDDING, group, shape)

    def _linear(self, name: str, shape: tuple[int, int]) -> Matrix:
        bias = self._given.bias(name, shape[0], self._config.biased)
        group = self._given.group(name)
        found = self._plain(name, shape) if group is None else self._quantised(name, group, shape)
        found.bias = None if bias is None else bias.address
        return found

    def _plain(self, name: str, shape: tuple[int, int]) -> Matrix:
        data = self._given.take(f"{name}.weight", shape)
        return Matrix(rows=shape[0], columns=shape[1], data=data.address, kind=PLAIN)

    def _quantised(self, name: str, group: LayerGroup, shape: tuple[int, int]) -> Matrix:
        parts = self._given.parts(name, group, shape)
        found = Matrix(rows=shape[0], columns=shape[1], kind=QUANTISED)
        found.weight = _weight(name, group, shape, parts)
        if group.activations:
            self._set_integers(name, found, group, parts)
        return found

    def _set_integers(self, name: str, matrix: Matrix, group: LayerGroup, parts: Tensors) -> None:
        """What the layer reads is made integers (NUM-132)."""
        if group.grid.kind != "int" or matrix.weight.group > MOST_DOTS:
            raise unfit(name, group.activations)
        matrix.kind = INTEGERS
        if "input_scale" in parts:
            scale = _floats(parts["input_scale"])
            self._alive.append(scale)
            matrix.input_scale = scale.ctypes.data


def _aligned(tensor: MappedTensor) -> MappedTensor:
    """The tensor where its elements lie as the machine wants them: there, or copied."""
    if tensor.address % DTYPE_BYTES[tensor.dtype] == 0:
        return tensor
    return replace(tensor, data=tensor.data.copy())


def _layer(number: int, matrices: Mapping[str, Matrix], places: Mapping[str, int]) -> Layer:
    name = f"model.layers.{number}"
    return Layer(
        norm=places[f"{name}.input_layernorm"],
        second_norm=places[f"{name}.post_attention_layernorm"],
        **{field: matrices[f"{name}.{end}"] for end, field in _FIELDS.items()},
    )


def _weight(
    name: str, group: LayerGroup, shape: tuple[int, int], parts: Tensors
) -> QuantisedWeight:
    """Codes and scales of a layer (QUANT-20 to QUANT-25)."""
    codes = parts["weight"] if "weight" in parts else parts["weight_packed"]
    scale, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    found = QuantisedWeight(
        codes=codes.address,
        row_bytes=len(codes.data) // shape[0],
        code=_code(group, codes),
        scales=scale.address,
        scale_step=prod(scale.shape[1:]),
        scale=SCALES[scale.dtype],
        group=group.grid.group or shape[1],
    )
    if zeros is not None:
        found.zeros, found.zero_step = zeros.address, prod(zeros.shape[1:])
    if "weight_global_scale" in parts:
        found.shared = float(_floats(parts["weight_global_scale"])[0])
    if found.group % 8 and found.group < shape[1]:
        raise unfit(name, group.grid)
    return found


def _code(group: LayerGroup, codes: MappedTensor) -> int:
    if group.grid.kind == "fp8":
        return CODES["e4m3"]
    if group.grid.kind != "int":
        return CODES["e2m1"]
    if codes.dtype == "I8":
        return CODES["signed8"]
    return CODES["offset4"] if group.grid.bits == 4 else CODES["offset8"]


# -------------------------------------------------------------------------------------- numbers


def _floats(tensor: MappedTensor) -> Floats:
    """The numbers of a small tensor of a storage format, exactly, as float32."""
    if tensor.dtype == "BF16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    stored = np.float16 if tensor.dtype == "F16" else np.float32
    return tensor.data.view(stored).astype(np.float32)


def _is_sound(part: str, tensor: MappedTensor, shape: tuple[int, int]) -> bool:
    """Whether a quantised layer of `shape` may have `tensor` as its `part` (GEN-45)."""
    if part == "weight_shape":
        return tensor.data.view(np.int64).tolist() == list(shape)
    if tensor.dtype == "F8_E4M3":
        return bool(((tensor.data & 0x7F) != 0x7F).all())
    if part == "weight_scale" and tensor.dtype == "U8":
        return bool((tensor.data != 0xFF).all())
    if tensor.dtype not in ELEMENTS:
        return True
    numbers = _floats(tensor)
    # One number of a whole layer divides others: it must be above 0.
    return bool(np.isfinite(numbers).all()) and (numbers.size > 1 or bool(numbers[0] > 0))


def frequencies(rotary: Rotary, width: int, library: Library) -> Floats:
    """How fast each pair of a head's numbers turns, [width / 2], float32.

    Each operation is the one of `kolm_build.runtime.rotary`, rounded once to float32.
    """
    with np.errstate(all="ignore"):  # what is no number shows in the logits
        return _turns(rotary, width, library)


def _turns(rotary: Rotary, width: int, library: Library) -> Floats:
    one = np.float32(1)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    base = np.full_like(exponents, rotary.theta)
    plain: Floats = one / library.power(base, exponents)
    if rotary.kind == "linear":
        return plain / np.float32(rotary.numbers["factor"])
    return _llama3(plain, rotary) if rotary.kind == "llama3" else plain


def _llama3(plain: Floats, rotary: Rotary) -> Floats:
    """Long waves slower by a factor, those between smoothly so (Llama 3.1).

    A number over a tensor is torch's reciprocal times that number: two roundings.
    """
    one, factor = np.float32(1), np.float32(rotary.numbers["factor"])
    length = rotary.numbers["original_max_position_embeddings"]
    low, high = rotary.numbers["low_freq_factor"], rotary.numbers["high_freq_factor"]
    waves = one / plain * np.float32(2 * pi)
    is_long, is_short = waves > np.float32(length / low), waves < np.float32(length / high)
    slowed = np.where(is_long, plain / factor, plain)
    turns = one / waves * np.float32(length)
    smooth = (turns - np.float32(low)) / np.float32(high - low)
    between = (one - smooth) * slowed / factor + smooth * slowed
    found: Floats = np.where(is_short | is_long, slowed, between)
    return found
