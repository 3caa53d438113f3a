"""Whole runs of unmodified models and optimisers on the portable kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere

from kolm_build.numerics import portable
from tests.numerics.tiny_models import VOCABULARY, build, train

ROOT = Path(__file__).resolve().parents[2]


def step_of(optimiser: type[torch.optim.Optimizer], form: dict[str, bool], **settings: object):
    """The weights after four steps on fixed gradients."""
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in [(5, 7), (1001,), (2, 3, 4)]]
    steps = optimiser(weights, **settings, **form)
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        steps.step()
    return [weight.detach() for weight in weights]


@pytest.mark.usefixtures("kernels")
class TestOptimisers:
    """NUM-80: loop, foreach and fused forms give the same bits."""

    FORMS = ({"foreach": False}, {"foreach": True}, {"fused": True})

    @pytest.mark.parametrize(
        ("optimiser", "settings"),
        [
            (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
            (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.4, 0.95)}),
            (torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
            (torch.optim.AdamW, {"lr": 1e-2, "maximize": True}),
            (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.1}),
            (torch.optim.SGD, {"lr": 0.1}),
            (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
            (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
            (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
        ],
    )
    def test_every_form_gives_the_same_weights(self, optimiser, settings):
        results = [step_of(optimiser, form, **settings) for form in self.FORMS]
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))

    def test_a_step_is_the_sequence_of_operations_of_the_spec(self):
        """spec/numerics.md, NUM-80."""
        torch.manual_seed(3)
        p, g = torch.randn(100), torch.randn(100)
        lr, beta1, beta2, eps, decay = 1e-3, 0.9, 0.999, 1e-8, 0.01
        weight = torch.nn.Parameter(p.clone())
        weight.grad = g
        adamw = torch.optim.AdamW(
            [weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, fused=True
        )
        adamw.step()

        def rounded(x: float) -> torch.Tensor:
            return torch.tensor(x, dtype=torch.float32)

        p = p * rounded(1 - lr * decay)
        m = rounded(1 - beta1) * g
        v = (rounded(1 - beta2) * g) * g
        d = v.sqrt() / rounded((1 - beta2) ** 0.5) + rounded(eps)
        p = p + (-rounded(lr / (1 - beta1)) * m) / d
        assert torch.equal(weight.detach(), p)

    def test_clipping_multiplies_by_the_number_of_the_spec(self):
        """spec/numerics.md, NUM-23 and NUM-81."""
        torch.manual_seed(3)
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(5, 7), (1001,)]]
        gradients = [torch.randn(weight.shape) for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(weights, 2.0)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = torch.tensor(2.0) / (norm + torch.tensor(1e-6))
        assert factor < 1
        for weight, gradient in zip(weights, gradients, strict=True):
            assert torch.equal(weight.grad, gradient * factor)

    def test_loss_scaling_is_refused(self):
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        adamw = torch.optim.AdamW([weight], fused=True)
        adamw.grad_scale, adamw.found_inf = torch.ones(1), torch.zeros(1)
        with pytest.raises(RuntimeError, match=f"^{portable.REFUSAL}aten::_fused_adamw_"):
            adamw.step()


def written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Attention as transformers' eager form writes it."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).tril().logical_not()
        scores = scores.masked_fill(hidden, -float("inf"))
    return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32), v)


@pytest.mark.usefixtures("kernels")
class TestAttention:
    """NUM-42: the fused kernel gives the bits of the written-out form, and so do its gradients."""

    @pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
    @pytest.mark.parametrize("rows", [(1, 1), (1, 300), (33, 33), (7, 65)])
    @pytest.mark.parametrize("kind", ["plain", "causal", "mask"])
    def test_fused_and_written_out_are_equal(self, heads, rows, kind):
        torch.manual_seed(1)
        q = torch.randn(2, heads[0], rows[0], 16, requires_grad=True)
        k = torch.randn(2, heads[1], rows[1], 16, requires_grad=True)
        v = torch.randn(2, heads[1], rows[1], 16, requires_grad=True)
        mask = None
        if kind == "mask":
            mask = torch.where(torch.rand(2, 1, *rows) > 0.2, 0.0, torch.finfo(torch.float32).min)
        fused = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=kind == "causal", enable_gqa=True
        )
        plain = written_out(q, k, v, mask, causal=kind == "causal")
        assert torch.equal(fused, plain)
        weights = torch.randn(fused.shape)
        ours = torch.autograd.grad((fused * weights).sum(), (q, k, v))
        theirs = torch.autograd.grad((plain * weights).sum(), (q, k, v))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_every_backend_choice_gives_the_same_bits(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        torch.manual_seed(1)
        q, k, v = torch.randn(3, 2, 4, 20, 16).unbind()
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                assert torch.equal(
                    F.scaled_dot_product_attention(q, k, v, is_causal=True), expected
                )
        with torch.inference_mode():
            assert torch.equal(F.scaled_dot_product_attention(q, k, v, is_causal=True), expected)

    def test_three_dimensions_and_a_mask_with_a_gradient_are_written_out(self):
        torch.manual_seed(1)
        q, k, v = torch.randn(3, 1, 4, 20, 16).unbind()
        mask = torch.randn(20, 20, requires_grad=True)
        expected = written_out(q, k, v, mask)
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), expected)
        flat = F.scaled_dot_product_attention(q[0], k[0], v[0], attn_mask=mask.detach())
        assert torch.equal(flat, expected[0])

    def test_a_row_whose_keys_are_all_hidden_is_zero(self):
        q = torch.randn(1, 1, 3, 4)
        mask = torch.tensor([[True], [False], [True]]).expand(3, 3)
        result = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        assert result[0, 0, 1].tolist() == [0, 0, 0, 0]
        assert result[0, 0, 0].abs().sum() > 0


@pytest.mark.usefixtures("kernels")
class TestPackedWeights:
    """Packing changes no bit, and a packed weight is never silently stale."""

    def layer(self) -> torch.nn.Linear:
        torch.manual_seed(2)
        return torch.nn.Linear(70, 50)

    def test_packed_and_unpacked_products_are_equal(self):
        layer = self.layer()
        for rows in (1, 2, 5, 33):
            x = torch.randn(rows, 70)
            expected = layer(x)
            with portable.packed_weights(layer):
                assert torch.equal(layer(x), expected)

    def doubled_while_packed(self, layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        with portable.packed_weights(layer), torch.no_grad():
            layer.weight.mul_(2)
            self.seen = layer(x)
        return self.seen

    def test_a_weight_that_an_operator_changes_is_read_anew(self):
        layer, x = self.layer(), torch.randn(1, 70)
        with pytest.raises(portable.PackedWeightError, match="weight changed"):
            self.doubled_while_packed(layer, x)
        assert torch.equal(self.seen, layer(x))

    def overwritten_while_packed(self, layer: torch.nn.Linear) -> None:
        with portable.packed_weights(layer):
            layer.weight.detach().numpy()[3, 4] = 7

    def test_a_weight_changed_behind_pytorchs_back_is_an_error(self):
        with pytest.raises(portable.PackedWeightError) as error:
            self.overwritten_while_packed(self.layer())
        assert error.value.where == ".weight"

    def test_nothing_stays_packed_after_the_block(self):
        layer = self.layer()
        with portable.packed_weights(layer):
            assert torch.ops.kolm_portable.is_packed_as_is(layer.weight)
        assert not torch.ops.kolm_portable.is_packed_as_is(layer.weight)


@pytest.mark.usefixtures("kernels")
class TestReading:
    """NUM-43: a prompt at once, in parts and token by token; a row alone and among others."""

    @pytest.fixture(params=["llama", "gpt2"])
    def model(self, request):
        return build(request.param).eval()

    @torch.no_grad()
    def test_decoding_gives_the_logits_of_reading_at_once(self, model):
        tokens = torch.randint(0, VOCABULARY, (2, 40))
        expected = model(input_ids=tokens).logits
        cache, parts = None, []
        for part in (tokens[:, :17], *tokens[:, 17:].split(1, dim=1)):
            result = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            parts.append(result.logits)
        assert torch.equal(torch.cat(parts, dim=1), expected)

    @torch.no_grad()
    def test_a_row_does_not_know_its_neighbours(self, model):
        tokens = torch.randint(0, VOCABULARY, (9, 24))
        expected = model(input_ids=tokens).logits
        for rows in (1, 2, 3, 5):
            assert torch.equal(model(input_ids=tokens[:rows]).logits, expected[:rows])

    @torch.no_grad()
    def test_generating_with_packed_weights_gives_the_same_logits(self, model):
        tokens = torch.randint(3, VOCABULARY, (2, 6))
        settings = {
            "max_new_tokens": 8,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
            "pad_token_id": 0,
        }
        plain = model.generate(tokens, **settings)
        with portable.packed_weights(model):
            packed = model.generate(tokens, **settings)
        assert torch.equal(torch.stack(plain.logits), torch.stack(packed.logits))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attention_and_the_optimisers_form_do_not_change_a_trained_weight(architecture):
    hashes = {
        train(build(architecture, attention=attention), optimiser)
        for attention in ("sdpa", "eager")
        for optimiser in ("loop", "fused")
    }
    assert len(hashes) == 1


@pytest.mark.ml
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_hash_over_processes_threads_and_instruction_sets(architecture):
    """The same trained weights whatever the machine's vector units and PyTorch's own choice.

    NUM-125: and whatever new memory holds; glibc fills it as it is told.
    """
    isas = [isa for isa in portable.isas() if isa != "baseline"]
    runs = [
        (isas[0], 1, "default", "sdpa", "fused"),
        (isas[0], 2, "avx512", "eager", "loop"),
        (isas[-1], 1, "avx2", "sdpa", "foreach"),
        (isas[-1], 2, "default", "sdpa", "fused"),
    ]
    hashes = set()
    for run, (isa, threads, capability, attention, optimiser) in enumerate(runs):
        arguments = [architecture, attention, optimiser, isa, str(threads)]
        result = subprocess.run(
            [sys.executable, "-m", "tests.numerics.tiny_models", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "ATEN_CPU_CAPABILITY": capability,
                "MALLOC_PERTURB_": str(60 * run),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        hashes.add(result.stdout.strip())
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64
