"""Sections of tools/bench_numerics.py that time whole runs: training steps, optimisers, generation.

Each run is one model under PyTorch's own kernels and under the portable ones, in turn; a ratio is
the median over pairs of (stock time / portable time).
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers

from kolm_build.numerics import portable

transformers.logging.set_verbosity_error()
SMOL = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How a section times: what `Bench` of tools/bench_numerics.py says."""

    isa: str
    threads: int
    seconds: float
    only: str

    def compare(self, name: str, run: Callable[[], tuple[float, ...]], parts: str) -> None:
        """Time `run`, which gives the seconds of its parts, under both kernels; print one line."""
        if self.only not in name:
            return
        pairs: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
        end = time.perf_counter() + 4 * self.seconds
        for kernels in (self._stock, self._portable):  # warm up
            kernels()
            run()
        while len(pairs) < 3 or time.perf_counter() < end:
            self._stock()
            stock = run()
            self._portable()
            pairs.append((stock, run()))
        self._stock()
        totals = [(sum(stock), sum(ours)) for stock, ours in pairs]
        ratios = [statistics.median(s[i] / o[i] for s, o in pairs) for i in range(len(pairs[0][0]))]
        total = statistics.median(s / o for s, o in totals)
        theirs, mine = (statistics.median(side) for side in zip(*totals, strict=True))
        each = ", ".join(
            f"{part} {ratio:.2f}" for part, ratio in zip(parts.split(), ratios, strict=True)
        )
        print(
            f"{name:42s} stock {theirs * 1e3:9.1f}  portable {mine * 1e3:9.1f} ms"
            f"  ratio {total:5.2f}  ({each}; {len(pairs)} pairs)",
            flush=True,
        )

    def clock(self) -> float:
        """Seconds: of this thread where it is the only one, else of the wall."""
        return time.thread_time() if self.threads == 1 else time.perf_counter()

    def _stock(self) -> None:
        portable.deactivate()

    def _portable(self) -> None:
        portable.activate(isa=self.isa)


def llama(**settings: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=1024, n_embd=256, n_layer=4, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def with_lora(model: Any) -> Any:
    import peft

    config = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def step_of(
    runs: Runs, model: Any, *, batch: int, tokens: int, form: dict[str, bool]
) -> Callable[[], tuple[float, ...]]:
    """One training step: the seconds of forward, backward, clipping and the optimiser."""
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adamw = torch.optim.AdamW(weights, lr=1e-5, **form)
    text = torch.randint(3, model.config.vocab_size, (batch, tokens))

    def run() -> tuple[float, ...]:
        times = [runs.clock()]
        loss = model(input_ids=text, labels=text).loss
        times.append(runs.clock())
        loss.backward()
        times.append(runs.clock())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        times.append(runs.clock())
        adamw.step()
        adamw.zero_grad()
        times.append(runs.clock())
        return tuple(b - a for a, b in itertools.pairwise(times))

    return run


PARTS = "forward backward clip optimiser"


def train(runs: Runs) -> None:
    """Whole steps, fused AdamW."""
    shapes: dict[str, tuple[Callable[[], Any], int, int]] = {
        "train tiny llama 4x128": (lambda: llama(**TINY), 4, 128),
        "train tiny gpt2 4x128": (gpt2, 4, 128),
        "train smollm2-135m 1x512": (lambda: llama(**SMOL, num_hidden_layers=30), 1, 512),
        "train lora smollm2-135m 1x512": (
            lambda: with_lora(llama(**SMOL, num_hidden_layers=30)),
            1,
            512,
        ),
    }
    for name, (build, batch, tokens) in shapes.items():
        if runs.only in name:
            step = step_of(runs, build(), batch=batch, tokens=tokens, form={"fused": True})
            runs.compare(name, step, PARTS)


def optimizer(runs: Runs) -> None:
    """AdamW's three forms over the weights of a small model."""
    forms = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    for form_name, form in forms.items():
        name = f"optimizer adamw {form_name}"
        if runs.only not in name:
            continue
        model = llama(**{**SMOL, "vocab_size": 8192}, num_hidden_layers=4)
        step = step_of(runs, model, batch=1, tokens=8, form=form)
        runs.compare(name, partial(last_two, step), "clip optimiser")


def last_two(step: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    return step()[2:]


def generate(runs: Runs) -> None:
    """Reading a prompt of 64 tokens and writing 32, one row; packing itself is not timed."""
    model = llama(**SMOL, num_hidden_layers=30).eval()
    text = torch.randint(3, model.config.vocab_size, (1, 64))
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}

    def write() -> float:
        start = runs.clock()
        model.generate(text, **settings)
        return runs.clock() - start

    def run() -> tuple[float, ...]:
        return (write(),)

    def packed() -> tuple[float, ...]:
        if not portable.is_active():
            return run()
        with portable.packed_weights(model):
            return run()

    runs.compare("generate smollm2-135m 64+32", run, "all")
    runs.compare("generate smollm2-135m 64+32 packed", packed, "all")
