"""Tiny models, trained or read: what the tests of whole runs hash.

Run as a program it trains one model in a process of its own and prints the hash of its weights:

    python -m tests.numerics.tiny_models ARCHITECTURE ATTENTION OPTIMISER ISA THREADS
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch

from kolm_build.numerics import portable

VOCABULARY = 256
STEPS = 5


def build(architecture: str, *, attention: str = "sdpa", dropout: float = 0.0) -> Any:
    """A model of two layers with weights drawn from the default generator, seeded here."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if architecture == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation=attention,
            bos_token_id=1,
            eos_token_id=2,
        )
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        attn_implementation=attention,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of every weight's bytes, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(model: Any, optimiser: str) -> str:
    """Take `STEPS` AdamW steps with clipping; the hash of the weights.

    Args:
        model: What `build` made.
        optimiser: "loop", "foreach" or "fused".
    """
    form = {"foreach": False} if optimiser == "loop" else {optimiser: True}
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, **form)
    model.train()
    for _ in range(STEPS):
        tokens = torch.randint(0, VOCABULARY, (3, 33))
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
    return weights_hash(model)


def main(arguments: list[str]) -> None:
    """Train as the arguments say, in this process."""
    architecture, attention, optimiser, isa, threads = arguments
    torch.set_num_threads(int(threads))
    portable.activate(isa=isa)
    model = build(architecture, attention=attention, dropout=0.1)
    sys.stdout.write(f"{train(model, optimiser)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
