"""Small networks of random weights, of every architecture that a decoder knows."""

from __future__ import annotations

import json

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def network_of(*, kind="llama", dtype=torch.float32, **changes):
    """A network of random weights, biases among them, in evaluation mode."""
    config, network = KINDS[kind]
    given = SIZES | {"attn_implementation": "sdpa"}
    torch.manual_seed(5)
    made = network(config(**given | changes)).to(dtype).eval()
    rotary = made.model.rotary_emb
    made.model.rotary_emb = type(rotary)(made.config)  # as a loader has it: float32 in any network
    for name, one in made.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(one)
    return made


def settings_of(network):
    """What config.json would say."""
    return json.loads(network.config.to_json_string(use_diff=False))


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(37 * at + 11 * seed + at * at) % 250 + 3 for at in range(length)]
