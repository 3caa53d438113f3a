"""Devices, and what a model will need on them (docs/quantisation.md)."""

from dataclasses import replace

import pytest

from kolm_build.core.cost import Sizes, shapes
from kolm_build.core.forecast import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    forecast,
    quantised_bytes,
    with_adapter,
)
from kolm_build.core.quantisation import SCHEMES, format_of, stored_tensors
from kolm_build.core.quantisation_config import grouped, to_config
from kolm_build.core.safetensors import DTYPE_BYTES, TensorEntry
from kolm_build.core.sections import Device, Quantise
from kolm_build.core.targets import SYSTEM_BYTES, TARGETS, Target, parse_target
from kolm_build.errors import DoesNotFitError, Exit, InvalidRecordError, UsageError

OWN = Device(name="edge-box", flops_per_s=7, bytes_per_s=9, microusd_per_hour=1)
GIB = 1 << 30
HIDDEN, WIDE, VOCABULARY, LAYERS = 128, 384, 500, 2
CONFIG = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
}
PLAIN = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,),
} | {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(LAYERS)
    for name, shape in {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
        "input_layernorm": (HIDDEN,),
    }.items()
}
STATIC = {"nvfp4": ("input_global_scale", "F32"), "int": ("input_scale", "BF16")}
UNTIED = PLAIN | {"lm_head.weight": (VOCABULARY, HIDDEN)}


def tensors(wanted, dtype="BF16"):
    """Headers of tensors, by name; a shape may bring its own dtype."""
    found, at = {}, 0
    for name, entry in sorted(wanted.items()):
        shape, kind = entry if isinstance(entry[0], tuple) else (entry, dtype)
        size = DTYPE_BYTES[kind]
        for one in shape:
            size *= one
        found[name] = TensorEntry(name=name, dtype=kind, shape=shape, begin=at, end=at + size)
        at += size
    return found


def size(found):
    return sum(tensor.end - tensor.begin for tensor in found.values())


def section(scheme="w4a16", **more):
    params = {"scheme": scheme, "group": 0, "embeddings": "keep", "keep": ""} | more
    return Quantise(scheme=scheme, method="rtn", rows=None, params=tuple(sorted(params.items())))


def quantised(scheme, shapes_of=PLAIN, kept=()):
    """The file and configuration that quantising the linear layers gives, as QUANT-20 has it."""
    stored, layers = {}, []
    for name, shape in shapes_of.items():
        layer = name.removesuffix(".weight")
        if len(shape) != 2 or not layer.startswith("model.layers") or layer in kept:
            stored[name] = shape
            continue
        grid = SCHEMES[scheme].grid(shape[1])
        form = format_of(grid, SCHEMES[scheme].activations)
        layers.append((layer, grid, form, SCHEMES[scheme].activations))
        for part, one in stored_tensors(grid, form, shape, scale_dtype="BF16").items():
            stored[f"{layer}.{part}"] = (one.shape, one.dtype)
        if SCHEMES[scheme].activations == "static":
            part, kind = STATIC[grid.kind]
            stored[f"{layer}.{part}"] = ((1,), kind)
    return CONFIG | {"quantization_config": to_config(grouped(layers))}, tensors(stored)


def target(ram=GIB, flops=10**9, moved=10**9):
    return Target(name="toy", ram_bytes=ram, flops_per_s=flops, bytes_per_s=moved)


def told(*, quantise=None, on=None):
    found = tensors(PLAIN)
    return forecast(CONFIG, found, quantise=quantise, target=on or target(), basis="base")


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_codes_are_counted_unpacked_and_bytes_as_they_lie(scheme):
    """EVAL-16: whatever the scheme, the model has the weights that it had."""
    config, stored = quantised(scheme)
    assert shapes(config, stored) == {name: tuple(shape) for name, shape in PLAIN.items()}
    before, after = Sizes.of(CONFIG, tensors(PLAIN)), Sizes.of(config, stored)
    assert (after.body, after.head) == (before.body, before.head)
    assert after.flops(7, 3) == before.flops(7, 3)
    assert after.element_bytes == 2
    assert after.parameter_bytes == size(stored) < before.parameter_bytes


def test_a_tied_head_of_codes_is_counted_once():
    """EVAL-16: the head has scales of its own, and the table's codes."""
    grid = SCHEMES["w8a8"].weights
    config = CONFIG | {
        "quantization_config": to_config(
            grouped(
                [
                    ("model.embed_tokens", grid, "int-quantized", ""),
                    ("lm_head", grid, "int-quantized", ""),
                ]
            )
        )
    }
    stored = tensors(
        PLAIN
        | {
            "model.embed_tokens.weight": ((VOCABULARY, HIDDEN), "I8"),
            "model.embed_tokens.weight_scale": (VOCABULARY, 1),
            "lm_head.weight_scale": (VOCABULARY, 1),
        }
    )
    assert shapes(config, stored) == PLAIN
    sizes = Sizes.of(config, stored)
    assert sizes.head == VOCABULARY * HIDDEN
    assert sizes.element_bytes == 2


def test_a_quantised_layer_without_codes_is_refused():
    config, stored = quantised("w4a16")
    layer = "model.layers.0.mlp.up_proj"
    left = {name: one for name, one in stored.items() if not name.startswith(f"{layer}.")}
    with pytest.raises(InvalidRecordError) as caught:
        shapes(config, left)
    assert caught.value.where == layer


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_the_bytes_that_are_told_are_the_bytes_that_come(scheme):
    """CLI-31."""
    found = tensors(PLAIN)
    assert quantised_bytes(found, section(scheme)) == size(quantised(scheme)[1])
    kept = {f"model.layers.{layer}.mlp.down_proj" for layer in range(LAYERS)}
    stored = quantised(scheme, kept=kept)[1]
    assert quantised_bytes(found, section(scheme, keep="*.down_proj\nlm_head")) == size(stored)


def test_a_table_of_eight_bits_has_a_scale_a_row_and_a_tied_head_has_its_own():
    bare = size(quantised("w4a16")[1])
    table = VOCABULARY * HIDDEN
    found = tensors(PLAIN)
    tied = quantised_bytes(found, section(embeddings="int8"))
    assert tied == bare - 2 * table + table + 2 * 2 * VOCABULARY
    untied = quantised_bytes(tensors(UNTIED), section(embeddings="int8"))
    assert untied == bare - 2 * table + 2 * (table + 2 * VOCABULARY)


def test_a_tied_head_has_no_form_of_four_bits():
    with pytest.raises(InvalidRecordError) as caught:
        quantised_bytes(tensors(PLAIN), section(embeddings="int4"))
    assert caught.value.where == "quantise.embeddings"
    assert quantised_bytes(tensors(UNTIED), section(embeddings="int4")) < quantised_bytes(
        tensors(UNTIED), section(embeddings="int8")
    )


def test_a_layer_that_no_group_divides_is_refused_before_it_is_built():
    odd = PLAIN | {"model.layers.0.mlp.up_proj.weight": (WIDE, 100)}
    with pytest.raises(InvalidRecordError, match="divides"):
        quantised_bytes(tensors(odd), section())


def test_memory_is_the_weights_and_a_fifth_the_program_and_the_cache():
    """CLI-31."""
    made = told()
    cache = LAYERS * 2 * 2 * (HIDDEN // 4) * 2 * (PROMPT_TOKENS + ANSWER_TOKENS)
    assert made.weight_bytes == size(tensors(PLAIN))
    assert made.memory_bytes == made.weight_bytes * 6 // 5 + 200_000_000 + cache
    assert made.parameters == sum(
        one[0] * (one[1] if len(one) > 1 else 1) for one in PLAIN.values()
    )


MIXTURE = (("adapter_dtype", "bf16"), ("experts", 4), ("lora_alpha", 4), ("lora_r", 2))


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        ("all-linear", ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")),
        ("q_proj,down_proj", ("self_attn.q_proj", "mlp.down_proj")),
    ],
)
def test_what_an_adapter_adds_beside_the_weights_is_told_too(names, layers):
    """ALG-23, EVAL-17: three matrices a layer, before there is any."""
    before = tensors(PLAIN)
    after = with_adapter(CONFIG, before, (*MIXTURE, ("target_modules", names), ("top_k", 2)))
    shapes_of = [PLAIN[f"model.layers.0.{name}.weight"] for name in layers]
    numbers = LAYERS * sum(8 * (rows + columns) + 4 * columns for rows, columns in shapes_of)
    assert len(after) - len(before) == 3 * LAYERS * len(layers)
    assert size(after) - size(before) == 2 * numbers
    assert Sizes.of(CONFIG, after).body - Sizes.of(CONFIG, before).body == numbers
    soft = (*MIXTURE, ("target_modules", names))
    assert with_adapter(CONFIG, before, soft) == after


@pytest.mark.parametrize(
    ("adapter", "width"),
    [("prefix-tuning", LAYERS * 2 * HIDDEN // 2), ("prompt-tuning", HIDDEN)],
)
def test_virtual_tokens_are_told_of_too(adapter, width):
    """ALG-24, EVAL-18: they are read by every token, and multiply nothing."""
    before = tensors(PLAIN)
    params = (("adapter", adapter), ("adapter_dtype", "fp32"), ("virtual_tokens", 5))
    after = with_adapter(CONFIG, before, params)
    assert after["prompt_embeddings"].shape == (5, width)
    one, other = Sizes.of(CONFIG, before), Sizes.of(CONFIG, after)
    assert (one.body, other.virtual_tokens) == (other.body, 5)
    read = 7 + 3 - 1
    assert other.flops(7, 3) - one.flops(7, 3) == 4 * LAYERS * HIDDEN * 5 * read
    moved = other.bytes_moved(7, 3) - one.bytes_moved(7, 3)
    assert moved == 3 * (4 * 5 * width + 5 * one.cache_row_bytes)


def test_a_mixture_of_adapters_that_were_trained_before_is_told_of_too():
    """MOE-46, MOE-47: each adapter as its stage stores it, and the base read twice."""
    before = tensors(PLAIN)
    shared = (("adapter_dtype", "bf16"), ("lora_alpha", 4), ("target_modules", "q_proj"))
    mixed = [
        (*shared, ("adapter", "lora"), ("lora_r", 2)),
        (*shared, ("adapter", "pissa"), ("lora_r", 3)),
        (*shared, ("adapter", "adalora"), ("adalora_init_r", 5)),
    ]
    own = (("adapter_dtype", "fp32"), ("top_k", 0), ("xlora_depth", 2), ("xlora_size", 7))
    after = with_adapter(CONFIG, before, own, mixed)
    rows, columns = PLAIN["model.layers.0.self_attn.q_proj.weight"]
    assert after["model.layers.0.self_attn.q_proj.down"].shape == (2 + 6 + 5, columns)
    frozen, gates = LAYERS * 13 * (rows + columns), LAYERS * 3 * 7
    trunk, biases = 7 * HIDDEN, LAYERS * 3 + 7
    assert size(after) - size(before) == 2 * frozen + 4 * (gates + trunk + biases)
    one, other = Sizes.of(CONFIG, before), Sizes.of(CONFIG, after)
    assert other.body == 2 * one.body + frozen + gates + trunk
    assert (other.layers, other.head) == (2 * one.layers, one.head)
    linear = {name for name in PLAIN if ".layers." in name and len(PLAIN[name]) == 2}
    assert other.again_bytes == sum(before[name].end - before[name].begin for name in linear)


def test_time_is_what_compute_or_memory_takes_the_longer():
    """KS-6: the model of time that the K-score has."""
    sizes = Sizes.of(CONFIG, tensors(PLAIN))
    slow = told(on=target(flops=1000, moved=10**15))
    assert slow.first_token_us == sizes.flops(PROMPT_TOKENS, 1) * 1000
    narrow = told(on=target(flops=10**15, moved=1000))
    assert narrow.first_token_us == sizes.bytes_moved(PROMPT_TOKENS, 1) * 1000
    more = sizes.bytes_moved(PROMPT_TOKENS, 1 + ANSWER_TOKENS)
    more -= sizes.bytes_moved(PROMPT_TOKENS, 1)
    assert narrow.token_us == -(-more * 1000 // ANSWER_TOKENS)
    both = told(on=target(flops=10**9, moved=10**8))  # reads at the one, answers at the other
    assert both.first_token_us == told(on=target(flops=10**9, moved=10**15)).first_token_us
    assert both.token_us == told(on=target(flops=10**15, moved=10**8)).token_us


def test_fewer_bits_are_smaller_and_faster():
    bound = target(flops=10**12)  # by memory, as small machines are
    plain, int8, int4 = (
        told(quantise=how, on=bound) for how in (None, section("w8a16"), section())
    )
    assert plain.memory_bytes > int8.memory_bytes > int4.memory_bytes
    assert plain.token_us > int8.token_us > int4.token_us


def test_what_does_not_fit_is_refused_with_both_figures():
    """CLI-30."""
    least = told().memory_bytes + SYSTEM_BYTES
    told(on=target(ram=least)).check()
    short = told(on=target(ram=least - 1))
    assert not short.fits
    with pytest.raises(DoesNotFitError) as caught:
        short.check()
    error = caught.value
    assert (error.code, error.exit) == ("input.does-not-fit", Exit.INPUT)
    assert str(short.memory_bytes) in error.actual
    assert str(short.target.free_bytes) in error.expected
    assert next(short.lines()).endswith("does not fit")
    assert short.to_value()["fits"] is False


def test_figures_are_told_to_the_nearest_tenth():
    made = replace(told(), weight_bytes=84_568_992, first_token_us=17_796, token_us=950)
    text = "\n".join(made.lines())
    assert "84.6 MB" in text
    assert "17.8 ms" in text
    assert "950 µs" in text


def test_a_device_of_the_table_is_found_by_its_name():
    assert parse_target("raspberry-pi-5", OWN) is TARGETS["raspberry-pi-5"]
    more = parse_target("raspberry-pi-5:8G", OWN)
    assert more.ram_bytes == 8 * GIB
    assert more.flops_per_s == TARGETS["raspberry-pi-5"].flops_per_s
    assert parse_target("raspberry-pi-4:512M", OWN).ram_bytes == GIB // 2


def test_the_recipes_own_device_needs_its_memory_said():
    own = parse_target("edge-box:2G", OWN)
    assert (own.ram_bytes, own.flops_per_s, own.bytes_per_s) == (2 * GIB, 7, 9)
    with pytest.raises(UsageError) as caught:
        parse_target("edge-box", OWN)
    assert caught.value.expected == "such as edge-box:4G"


@pytest.mark.parametrize("text", ["raspberry-pi-6", "", ":4G", "edge"])
def test_an_unknown_device_is_refused_with_those_there_are(text):
    with pytest.raises(UsageError) as caught:
        parse_target(text, OWN)
    assert "raspberry-pi-5" in caught.value.expected
    assert "edge-box" in caught.value.expected


@pytest.mark.parametrize("memory", ["", "0G", "4", "4GB", "-1G", "1.5G", "\uff14G", "4g"])
def test_what_is_no_size_of_memory_is_refused(memory):
    with pytest.raises(UsageError, match="not a size of memory"):
        parse_target(f"raspberry-pi-5:{memory}", OWN)


def test_the_table_is_of_real_devices():
    for name, one in TARGETS.items():
        assert name == one.name
        assert one.free_bytes > 0
        assert 10**9 < one.bytes_per_s < one.flops_per_s < 10**12
