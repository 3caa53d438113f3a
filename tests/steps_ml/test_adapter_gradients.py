"""Gradients of what adapters train: finite differences, and the model's own; virtual tokens too."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from tests.steps_ml.test_adapters import (
    IDS,
    PARAMS,
    PARTIAL,
    ROUNDED,
    VIRTUAL,
    attached,
    change_of,
    logits_of,
    network_of,
    round_linear_layers,
)
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

MIXTURES = {
    "lora-moe": {"experts": 3, "lora_r": 2},
    "moe-lora": {"experts": 3, "top_k": 2, "lora_r": 2},
}
WHOLE = {"freeze", "full", "ln-tuning"}
IN_FLOAT32 = ["boft", *MIXTURES]
SMOOTH = sorted({*PARAMS, *VIRTUAL, *WHOLE} - ROUNDED - {"boft", "dora"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("gradients") / "model")


def biased():
    """A small network with biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=90,
    )
    return Qwen2ForCausalLM(config)


def loss_of(change, network):
    """The likelihood of fixed tokens and what the adapter adds, as the trainer adds it."""
    logits = network(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], IDS[0, 1:])
    for more in (change.row_penalty(network), change.penalty(network)):
        loss = loss if more is None else loss + more
    return loss


@pytest.mark.parametrize("name", SMOOTH)
def test_a_gradient_is_that_of_differences_along_lines(name, model):
    """ADPT-3: of all that is trained, in float64."""
    change, network = attached(name, model)
    check_lines(change, in_float64(network))


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_a_gradient_is_that_of_differences_along_lines_in_float32(name, model):
    """ADPT-31, MOE-1: whatever a network is in, these compute in float32."""
    change, network = attached(name, model, **MIXTURES.get(name, {}))
    check_lines(change, network, step=2e-2, within=3e-4)


def test_the_gradient_of_biases_is_that_of_differences_along_lines():
    """ADPT-60."""
    change = change_of("bitfit")
    check_lines(change, in_float64(change.attach(biased()).eval()))


def in_float64(network):
    """`network` in float64, its norms too, which transformers computes in float32."""
    for one in network.double().modules():
        if type(one).__name__.endswith("RMSNorm"):
            one.forward = partial(normed, one)
    return network


def normed(norm, values):
    square = (values**2).mean(dim=-1, keepdim=True)
    return norm.weight * values * torch.rsqrt(square + norm.variance_epsilon)


def check_lines(change, network, *, step=1e-4, within=1e-6):
    """The gradient along three directions against central differences of the loss."""
    trained = [one for one in network.parameters() if one.requires_grad]
    network.zero_grad()
    loss_of(change, network).backward()
    found = [one.grad.clone() for one in trained]
    assert max(one.abs().max() for one in found) > 1e-4
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        line = [torch.randn(one.shape, generator=draw, dtype=one.dtype) for one in trained]
        length = sum((one**2).sum() for one in line) ** 0.5
        line = [one / length for one in line]
        slope = sum((one * way).sum().item() for one, way in zip(found, line, strict=True))
        assert slope == pytest.approx(difference(change, network, line, step), abs=within)


@torch.no_grad()
def difference(change, network, line, step):
    """The slope of the loss along `line`, of its values at four places."""
    trained = [one for one in network.parameters() if one.requires_grad]
    kept = [one.clone() for one in trained]

    def at(steps):
        for one, before, way in zip(trained, kept, line, strict=True):
            one.copy_(before + steps * step * way)
        return loss_of(change, network).item()

    slope = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    at(0)
    return slope


def test_the_gradient_of_dora_is_that_of_its_equation_with_the_norm_held(model):
    """ADPT-3: section 4.3 of the paper: the length of W + s B A is a constant to it."""
    _, network = attached("dora", model)
    layer = network.double().get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).double()
    w, a, b, m = (
        one.detach().clone().requires_grad_()
        for one in (
            layer.base_layer.weight,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            layer.lora_magnitude_vector["default"].weight,
        )
    )
    held = (w + 1.5 * b @ a).norm(dim=1).detach()

    def by_hand(a, b, m):
        return (((m / held)[:, None] * (w + 1.5 * b @ a)) @ x.T).square().sum()

    loss = layer(x).square().sum()
    loss.backward()
    torch.testing.assert_close(loss, by_hand(a, b, m), rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(by_hand, [a, b, m], fast_mode=True)
    wanted = torch.autograd.grad(by_hand(a, b, m), [a, b, m])
    found = (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one["default"].weight.grad, other, rtol=1e-5, atol=1e-6)


def own_gradients(network):
    """Those of the plain network, by name."""
    network.requires_grad_(requires_grad=True)
    logits = network(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    torch.nn.functional.cross_entropy(logits[:-1], IDS[0, 1:]).backward()
    return {name: one.grad for name, one in network.named_parameters()}


@pytest.mark.parametrize("name", sorted({*PARTIAL, "bitfit"} - ROUNDED))
def test_weights_that_train_themselves_have_the_models_own_gradient(name, model):
    """ADPT-60: bit for bit; what is not trained has none, and the model is as it was."""

    def plain():
        return biased() if name == "bitfit" else network_of(model)

    change, wanted = change_of(name), own_gradients(plain().eval())
    network = change.attach(plain()).eval()
    assert torch.equal(logits_of(network), logits_of(plain().eval()))
    loss_of(change, network).backward()
    for path, one in network.named_parameters():
        assert one.requires_grad == (one.grad is not None), path
        if one.requires_grad:
            assert torch.equal(one.grad, wanted[path]), path
    assert any(one.requires_grad for one in network.parameters())


@pytest.mark.parametrize("name", ["lora-fa", "qlora", *MIXTURES])
def test_it_begins_as_the_base_or_as_the_base_rounded(name, model):
    """ADPT-11, MOE-1: B is 0."""
    base = network_of(model).eval()
    if name == "qlora":
        round_linear_layers(base)
    network = change_of(name, **MIXTURES.get(name, {})).attach(network_of(model)).eval()
    torch.testing.assert_close(logits_of(network), logits_of(base), rtol=1e-5, atol=1e-5)


def test_of_rank_1_rslora_is_lora(model):
    """ADPT-3: alpha over the root of 1; of rank 4 it is twice as large."""
    for rank, times in ((1, 1), (4, 2)):
        ours, theirs = (
            attached(name, model, lora_r=rank)[1].get_submodule(
                "base_model.model.model.layers.0.self_attn.q_proj"
            )
            for name in ("rslora", "lora")
        )
        one, other = ours.get_delta_weight("default"), theirs.get_delta_weight("default")
        torch.testing.assert_close(one, times * other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lora", "lora-fa", "rslora"])
def test_a_low_rank_layer_is_its_equation(name, model):
    """ADPT-3: W x + s B A x in float64, s = alpha / r or alpha / sqrt(r)."""
    _, network = attached(name, model)
    layer = network.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    inputs = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    w, a, b = (
        one.detach().double().numpy()
        for one in (
            layer.base_layer.weight,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
        )
    )
    scale = 6 / 2 if name == "rslora" else 6 / 4
    x = inputs.double().numpy()
    wanted = x @ w.T + scale * x @ a.T @ b.T
    np.testing.assert_allclose(layer(inputs).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_mixture_of_experts_is_its_equation(model):
    """MOE-1, MOE-2: W x + s sum of g_i B_i A_i x in float64, g by the router."""
    for name, params in MIXTURES.items():
        _, network = attached(name, model, **params)
        layer = network.get_submodule("model.layers.1.mlp.down_proj")
        inputs = torch.randn(5, layer.layer.in_features, generator=torch.Generator().manual_seed(2))
        w, a, b, router = (
            one.detach().double().numpy()
            for one in (layer.layer.weight, layer.down, layer.up, layer.router)
        )
        x = inputs.double().numpy()
        p = np.exp(x @ router.T)
        p /= p.sum(axis=1, keepdims=True)
        if name == "moe-lora":
            p[np.arange(5), p.argmin(axis=1)] = 0  # two of three speak
            p /= p.sum(axis=1, keepdims=True)
        wanted = x @ w.T
        for at in range(3):
            own = slice(2 * at, 2 * at + 2)
            wanted += 16 * p[:, at : at + 1] * (x @ a[own].T @ b[:, own].T)  # alpha 32, rank 2
        np.testing.assert_allclose(layer(inputs).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- virtual tokens

WORDS = torch.tensor([[3, 77, 20]])


def embeddings(network, ids):
    return network.get_input_embeddings()(ids)


def test_a_prompt_of_vectors_is_read_as_words_are(model):
    """ADPT-50: transformers reads the same vectors before the row's own; equal to words they are.

    So the vectors of three words give what the three words before the row give.
    """
    _, network = attached("prompt-tuning", model)
    base = network_of(model).eval()
    vectors = network.get_submodule("prompt_encoder.default.embedding").weight
    with torch.no_grad():
        both = torch.cat([vectors[None], embeddings(base, IDS)], dim=1)
        wanted = base(inputs_embeds=both).logits[:, 3:]
        torch.testing.assert_close(logits_of(network), wanted, rtol=1e-5, atol=1e-5)
        vectors.copy_(embeddings(base, WORDS)[0])
        wanted = base(input_ids=torch.cat([WORDS, IDS], dim=1)).logits[:, 3:]
    torch.testing.assert_close(logits_of(network), wanted, rtol=1e-5, atol=1e-5)


def test_a_prefix_is_the_keys_and_values_of_what_was_read_before(model):
    """ADPT-50: equation 3; equal to those of three words it gives what the words give."""
    _, network = attached("prefix-tuning", model)
    base = network_of(model).eval()
    table = network.get_submodule("prompt_encoder.default.embedding").weight
    with torch.no_grad():
        read = base(input_ids=WORDS, use_cache=True).past_key_values
        layers = [
            (one.keys[0].transpose(0, 1), one.values[0].transpose(0, 1)) for one in read.layers
        ]  # (words, heads, width)
        flat = [part.reshape(3, -1) for pair in layers for part in pair]
        assert sum(one.shape[1] for one in flat) == table.shape[1]
        table.copy_(torch.cat(flat, dim=1))
        wanted = base(input_ids=torch.cat([WORDS, IDS], dim=1)).logits[:, 3:]
    torch.testing.assert_close(logits_of(network), wanted, rtol=1e-5, atol=1e-5)
