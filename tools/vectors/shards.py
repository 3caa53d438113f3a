"""The trees that shards' gradients are added by."""

from kolm_build.numerics.shards import Node


def vectors() -> dict[str, object]:
    """The sum of a batch's shards, as it is written on paper."""
    counts = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17)
    return {"trees": [{"shards": count, "sum": _sum(Node(0, count))} for count in counts]}


def _sum(node: Node) -> str:
    if node.is_shard:
        return str(node.start)
    left, right = node.halves()
    return f"({_sum(left)} + {_sum(right)})"
