"""Operations and bytes are counted by the formulas of the spec."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.runtime.loading import load
from kolm_build.steps._counts import Architecture, mean_counts
from kolm_build.steps._generate import batches
from tests.support.models import tiny_llama

SIZES = Architecture(
    parameters=100,
    parameter_bytes=200,
    body=60,
    head=30,
    layers=2,
    query_width=8,
    cache_width=4,
    element_bytes=2,
)


def passes(prompt: int, output: int):
    """The forward passes of a request, as (new tokens, tokens before), one by one."""
    yield prompt, 0
    for said in range(1, output):
        yield 1, prompt + said - 1


@given(prompt=st.integers(1, 40), output=st.integers(1, 20))
def test_operations_are_those_of_the_passes_added_up(prompt, output):
    """EVAL-8."""
    total = 0
    for new, before in passes(prompt, output):
        attended = sum(before + index + 1 for index in range(new))
        total += 2 * SIZES.body * new + 2 * SIZES.head
        total += 2 * 2 * SIZES.layers * SIZES.query_width * attended
    assert SIZES.flops(prompt, output) == total


@given(prompt=st.integers(1, 40), output=st.integers(1, 20))
def test_bytes_are_those_of_the_passes_added_up(prompt, output):
    """EVAL-9."""
    row = SIZES.layers * SIZES.cache_width * SIZES.element_bytes
    total = 0
    for index, (new, before) in enumerate(passes(prompt, output)):
        total += SIZES.parameter_bytes + row * new
        total += row * (before + new) if index else 0
    assert SIZES.bytes_moved(prompt, output) == total


def test_means_are_rounded_up():
    """EVAL-10."""
    requests = [(3, 1), (4, 1), (4, 2)]
    flops = sum(SIZES.flops(*one) for one in requests)
    assert mean_counts(SIZES, requests)["flops_per_request"] == -(-flops // 3)


def test_the_sizes_of_a_network_are_counted_once(tmp_path):
    sizes = Architecture.of(load(tiny_llama(tmp_path / "model")).network)
    assert sizes.parameters == 90_688
    assert sizes.parameter_bytes == 4 * 90_688
    assert sizes.head == 260 * 64
    assert sizes.body == 90_688 - 260 * 64 - 5 * 64
    assert (sizes.layers, sizes.query_width, sizes.cache_width) == (2, 64, 64)


def test_the_operations_of_reading_are_those_torch_counts(tmp_path):
    """EVAL-8: the formula against torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    network = load(tiny_llama(tmp_path / "model")).network
    network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=torch.tensor([[5] * 32]), logits_to_keep=1)
    sizes = Architecture.of(network)
    whole_square = 4 * sizes.layers * sizes.query_width * (32 * 32 - 32 * 33 // 2)
    # Rotary embeddings are a product too, far below a thousandth of the whole.
    assert counter.get_total_flops() == pytest.approx(sizes.flops(32, 1) + whole_square, rel=1e-3)


@given(st.lists(st.integers(1, 6), max_size=30), st.integers(1, 5))
def test_a_batch_holds_prompts_of_one_length(lengths, size):
    """EVAL-2."""
    found = list(batches(lengths, size))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= size
        assert len({lengths[index] for index in batch}) == 1
    order = [(lengths[index], index) for batch in found for index in batch]
    assert all(one < other for one, other in pairwise(order))
