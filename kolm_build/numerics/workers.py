"""Workers that share a batch: their partial sums become one total, the same bits for any number.

The processes of one `torch.distributed` group (gloo, on a CPU). Nothing of the library's own
reductions is used, since their order is the library's choice: sums travel as they are, and every
addition is the tree's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from kolm_build.numerics.gradients import TreeSum
from kolm_build.numerics.shards import Transfer, transfers


def total_of_workers(part: TreeSum, owners: Sequence[int], *, elements: int) -> torch.Tensor:
    """The sum of all shards, at every worker.

    Args:
        part: The sum of this worker's shards; it is used up.
        owners: For each shard the rank of the worker that computed it; the same at all workers.
        elements: Length of a shard's vector.

    Returns:
        Shape (elements,), float32.

    Determinism:
        The bits of one process that adds all shards (spec/numerics.md, NUM-113).
    """
    rank = dist.get_rank()
    for transfer in transfers(owners):
        _carry_out(transfer, part, rank=rank, elements=elements)
    total = part.total() if rank == owners[0] else torch.empty(elements)
    dist.broadcast(total, src=owners[0])
    return total


def _carry_out(transfer: Transfer, part: TreeSum, *, rank: int, elements: int) -> None:
    if rank == transfer.source:
        dist.send(part.take(transfer.node), dst=transfer.target)
    elif rank == transfer.target:
        vector = torch.empty(elements)
        dist.recv(vector, src=transfer.source)
        part.put(transfer.node, vector)
