"""What row shards, the trace and joined answers cost or save, as ratios within one run.

    python tools/bench_shards.py

Process CPU time on one thread of the portable kernels; medians of interleaved pairs. The model is
a Llama of 4 layers with random weights and LoRA adapters on every linear layer.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.core.numerics import Numerics  # noqa: E402 -- the checkout's own
from kolm_build.numerics.apply import applied  # noqa: E402
from kolm_build.numerics.gradients import TreeSum, flat_gradients, set_gradients  # noqa: E402
from kolm_build.numerics.state import optimiser_digest, tensors_digest  # noqa: E402
from kolm_build.runtime.generate import continue_greedily, read_prompts  # noqa: E402
from kolm_build.runtime.ragged import joined  # noqa: E402

PAIRS = 5
LENGTHS = (41, 58, 77, 90, 103, 120, 131, 140)
VOCABULARY = 4096


def network() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    return LlamaForCausalLM(config)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (1, length), generator=generator) for length in LENGTHS]


def loss_of(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=8).logits
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY), torch.zeros(8 * len(ids), dtype=torch.long), reduction="sum"
    )


def padded_step(model: torch.nn.Module) -> None:
    """One batch, padded to its longest row."""
    longest = max(LENGTHS)
    ids = torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows()])
    mask = torch.cat([(torch.arange(longest) < length)[None].long() for length in LENGTHS])
    loss_of(model, ids, mask).backward()


def sharded_step(model: torch.nn.Module) -> None:
    """The same rows as logical shards."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    total = TreeSum(len(LENGTHS))
    for shard, ids in enumerate(rows()):
        loss_of(model, ids, torch.ones_like(ids)).backward()
        total.add(shard, flat_gradients(parameters))
        model.zero_grad()
    set_gradients(parameters, total.total())


def seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def ratio(one: Callable[[], None], other: Callable[[], None]) -> float:
    """The median over pairs of the time of `one` by that of `other`."""
    one()
    other()
    return statistics.median(seconds(one) / seconds(other) for _ in range(PAIRS))


def training(model: torch.nn.Module) -> None:
    wrapped = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    optimiser = torch.optim.AdamW([one for one in wrapped.parameters() if one.requires_grad])
    found = ratio(lambda: sharded_step(wrapped), lambda: padded_step(wrapped))
    print(f"a step of 8 rows as shards, by one padded batch: {found:.2f}")
    optimiser.step()
    trained = {name: one for name, one in wrapped.named_parameters() if one.requires_grad}
    names = {one: name for name, one in trained.items()}

    def trace() -> None:
        tensors_digest(trained.items())
        optimiser_digest(optimiser, names)

    found = ratio(trace, lambda: sharded_step(wrapped))
    print(f"a step's digests, by the step: {found:.4f}")


def answering(model: torch.nn.Module) -> None:
    prompts = [row[0].tolist() for row in rows()]

    def together() -> None:
        prefixes = [read_prompts(model, [ids]) for ids in prompts]
        continue_greedily(joined(prefixes, room=24), max_new_tokens=24, stop_ids=set())

    def alone() -> None:
        for ids in prompts:
            continue_greedily(read_prompts(model, [ids]), max_new_tokens=24, stop_ids=set())

    found = ratio(together, alone)
    print(f"8 prompts of 8 lengths, 24 tokens each, joined, by one at a time: {found:.2f}")


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    with applied(Numerics(cls="portable-1", seed=1)):
        answering(network().eval())
        training(network())
    return 0


if __name__ == "__main__":
    sys.exit(main())
