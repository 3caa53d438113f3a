"""The gradient of a batch is one fixed sum, whoever computes its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.gradients import (
    TreeSum,
    flat_gradients,
    set_gradients,
    take_gradients,
)
from kolm_build.numerics.shards import Node, cut, parent, sibling, transfers

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "spec" / "vectors" / "shards.json").read_text())

shard_counts = st.integers(min_value=1, max_value=70)


def formula(node: Node) -> str:
    """The sum as it is written on paper."""
    if node.is_shard:
        return str(node.start)
    return "(" + " + ".join(map(formula, node.halves())) + ")"


def vectors(count: int, elements: int = 33) -> list[torch.Tensor]:
    """Vectors whose sum depends on the order in nearly every element."""
    generator = torch.Generator().manual_seed(count)
    scales = torch.randint(-12, 12, (count, elements), generator=generator)
    return list(torch.randn(count, elements, generator=generator) * 2.0**scales)


def by_recursion(node: Node, parts: list[torch.Tensor]) -> torch.Tensor:
    """The total, straight from the definition."""
    if node.is_shard:
        return parts[node.start]
    left, right = node.halves()
    return by_recursion(left, parts) + by_recursion(right, parts)


@pytest.mark.parametrize("case", VECTORS["trees"], ids=lambda case: str(case["shards"]))
def test_the_tree_is_the_one_of_the_vectors(case):
    """NUM-111."""
    assert formula(Node(0, case["shards"])) == case["sum"]


@given(shard_counts)
def test_the_left_part_is_the_largest_power_of_two_below(count):
    """NUM-111."""
    node = Node(0, count)
    if not node.is_shard:
        left, right = node.halves()
        size = left.end
        assert size.bit_count() == 1
        assert size < count <= 2 * size
        assert (right.start, right.end) == (size, count)
        assert parent(left, count) == parent(right, count) == node
        assert (sibling(left, count), sibling(right, count)) == (right, left)


@given(shard_counts, st.randoms(use_true_random=False))
def test_the_order_in_which_shards_come_changes_no_bit(count, random):
    """NUM-112."""
    parts = vectors(count)
    order = list(range(count))
    random.shuffle(order)
    total = TreeSum(count)
    for shard in order:
        total.add(shard, parts[shard].clone())
    assert torch.equal(total.total(), by_recursion(Node(0, count), parts))
    assert total.parts == 0


def test_the_order_of_a_plain_sum_would_change_bits():
    """The vectors are such that the tests above could fail."""
    parts = vectors(16)
    assert not torch.equal(torch.stack(parts).sum(0), by_recursion(Node(0, 16), parts))
    assert not torch.equal(sum(parts[1:], parts[0]), by_recursion(Node(0, 16), parts))


@given(shard_counts)
def test_shards_in_order_leave_few_partial_sums(count):
    """NUM-112: at most log2(shards) + 1 are held."""
    total = TreeSum(count)
    most = 0
    for shard in range(count):
        total.add(shard, torch.zeros(1))
        most = max(most, total.parts)
    assert most <= count.bit_length()


def test_a_shard_that_comes_twice_or_never_is_refused():
    total = TreeSum(3)
    total.add(0, torch.ones(1))
    total.add(1, torch.ones(1))
    with pytest.raises(InvalidRecordError, match="twice"):
        total.add(1, torch.ones(1))
    with pytest.raises(InvalidRecordError, match="missing"):
        total.total()
    with pytest.raises(InvalidRecordError, match="not a part"):
        total.add(3, torch.ones(1))


@given(st.lists(st.integers(min_value=0, max_value=4), min_size=1, max_size=40))
def test_any_partition_over_workers_gives_the_same_bits(owners):
    """NUM-113."""
    parts = vectors(len(owners))
    workers = {rank: TreeSum(len(owners)) for rank in set(owners)}
    for shard, owner in enumerate(owners):
        workers[owner].add(shard, parts[shard].clone())
    for transfer in transfers(owners):
        assert transfer.source != transfer.target
        workers[transfer.target].put(transfer.node, workers[transfer.source].take(transfer.node))
    total = workers[owners[0]].total()
    assert torch.equal(total, by_recursion(Node(0, len(owners)), parts))
    assert all(worker.parts == 0 for worker in workers.values())


def test_workers_with_runs_of_shards_send_one_sum_each():
    """NUM-113: four workers of two shards need three transfers."""
    assert len(transfers([0, 0, 1, 1, 2, 2, 3, 3])) == 3


@given(st.integers(min_value=1, max_value=50), st.integers(min_value=1, max_value=9))
def test_rows_are_cut_into_shards_in_order(rows, shard_rows):
    """NUM-110."""
    shards = cut(rows, shard_rows)
    assert [row for shard in shards for row in shard] == list(range(rows))
    assert {len(shard) for shard in shards[:-1]} <= {shard_rows}
    assert 1 <= len(shards[-1]) <= shard_rows


def test_a_parameter_without_a_gradient_adds_zeros():
    """NUM-114."""
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    weights[1].grad = torch.arange(4.0)
    vector = flat_gradients(weights)
    assert vector.tolist() == [0.0] * 6 + [0.0, 1.0, 2.0, 3.0]
    set_gradients(weights, vector * 2)
    assert weights[0].grad.shape == (2, 3)
    assert weights[1].grad.tolist() == [0.0, 2.0, 4.0, 6.0]


def test_a_gradient_of_another_dtype_is_refused():
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(InvalidRecordError, match="dtype"):
        flat_gradients([weight])


def test_gradients_are_taken_from_their_parameters_with_numbers_behind_them():
    """NUM-112, NUM-114: signs of zeros too; what an objective added before is in them."""
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    (weights[0] * torch.tensor([-0.0, 0.5, -2.0])).sum().backward()
    (weights[0] * torch.tensor([-0.0, 1.0, 0.0])).sum().backward()
    vector = take_gradients(weights, (torch.tensor(0.25), torch.tensor(7, dtype=torch.int64)))
    wanted = torch.tensor([-0.0, 1.5, -2.0, 0.0, 0.0, 0.25, 7.0])
    assert vector.view(torch.int32).tolist() == wanted.view(torch.int32).tolist()
    assert [weight.grad for weight in weights] == [None, None]


WORKER = """
import os, sys
import torch
import torch.distributed as dist
from kolm_build.numerics.gradients import TreeSum
from kolm_build.numerics.workers import total_of_workers
from tests.numerics.test_shards import gradient_of, owners_of

place, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
store = dist.FileStore(place + "/rendezvous", world)
dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
for way in ("runs", "dealt"):
    owners = owners_of(way, world)
    part = TreeSum(len(owners))
    for shard, owner in enumerate(owners):
        if owner == rank:
            part.add(shard, gradient_of(shard))
    total = total_of_workers(part, owners, elements=len(gradient_of(0)))
    with open(f"{place}/{way}-{rank}", "wb") as file:
        file.write(total.numpy().tobytes())
dist.barrier()
os._exit(0)  # a thread of gloo may abort an ordinary exit
"""

SHARDS = 13


def owners_of(way: str, world: int) -> list[int]:
    """13 shards over `world` workers, in runs or dealt like cards."""
    if way == "dealt":
        return [shard % world for shard in range(SHARDS)]
    return [shard * world // SHARDS for shard in range(SHARDS)]


def gradient_of(shard: int) -> torch.Tensor:
    """A real gradient: that of one row in a small network."""
    generator = torch.Generator().manual_seed(7)
    network = torch.nn.Sequential(
        torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 5, bias=False)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    rows = torch.randn(SHARDS, 9, 16, generator=generator)
    network(rows[shard]).square().sum().backward()
    return flat_gradients(network.parameters())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_get_the_bits_of_one_process(tmp_path, world):
    """NUM-113: real gloo processes; every one of them ends with the total."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(rank), str(world)], env=environment
        )
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * world
    parts = [gradient_of(shard) for shard in range(SHARDS)]
    expected = by_recursion(Node(0, SHARDS), parts).numpy().tobytes()
    for way in ("runs", "dealt"):
        for rank in range(world):
            assert (tmp_path / f"{way}-{rank}").read_bytes() == expected
