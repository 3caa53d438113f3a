"""The methods once more from spec/algorithms-merging.md alone, in NumPy's binary32: bit for bit.

Nothing of the package is used; `references` has the formulas of the papers, this file the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
from blake3 import blake3

from tests.merging.references import generator_seed, kept, top

f32 = np.float32


@dataclass(frozen=True)
class Member:
    values: np.ndarray
    weight: Fraction
    digest: str
    number: int


def members(models, weights) -> list[Member]:
    """MERGE-4 and the numbers of MERGE-6."""
    rows = sorted(
        (blake3(one.tobytes()).hexdigest(), weight, index)
        for index, (one, weight) in enumerate(zip(models, weights, strict=True))
    )
    digests = [digest for digest, _, _ in rows]
    return [
        Member(models[index], weight, digest, digests[:place].count(digest))
        for place, (digest, weight, index) in enumerate(rows)
    ]


def moved(base, change):
    """MERGE-5."""
    return np.where(change == 0, base, base + change)


def added(pairs):
    """The sum of w * x, product and sum rounded."""
    total = f32(0)
    for weight, values in pairs:
        total = total + f32(float(weight)) * values
    return total


def lerp(first, second, share):
    """NUM-54, with MERGE-13 and MERGE-14's ends."""
    if share in (0, 1):
        return second if share else first
    w, apart = f32(share), second - first
    way = first + w * apart if abs(w) < 0.5 else second - apart * (f32(1) - w)
    return np.where(first == second, first, way)


def soup(group):
    """MERGE-8."""
    whole, first = sum(one.weight for one in group), group[0].values
    return moved(
        first, added((one.weight / whole, one.values - first) for one in group[1:]) + 0 * first
    )


def agreed(pairs):
    """MERGE-10, MERGE-11."""
    pairs = list(pairs)
    up = added((w, np.where(x > 0, x, f32(0))) for w, x in pairs)
    down = added((w, np.where(x < 0, x, f32(0))) for w, x in pairs)
    of_up = added((w, (x > 0).astype(f32)) for w, x in pairs)
    of_down = added((w, (x < 0).astype(f32)) for w, x in pairs)
    with np.errstate(all="ignore"):
        sign = up + down
        return np.where(sign > 0, up / of_up, np.where(sign < 0, down / of_down, f32(0)))


def count_of(share, elements):
    """MERGE-7."""
    count = int(share * elements)
    return max(count, 1) if share and elements else count


def row_chances(change, density, epsilon):
    """MERGE-16."""
    rows = np.abs(change).reshape(1 if change.ndim < 2 else change.shape[0], -1)
    ranks = np.empty(rows.shape, f32)
    for row, rank in zip(rows, ranks, strict=True):
        rank[np.argsort(-row, kind="stable")] = np.arange(len(row))
    step = f32(float(-epsilon / rows.shape[1]))
    return (f32(float(density + epsilon / 2)) + step * ranks).reshape(change.shape)


def sparse(name, change, member, *, seed, tensor, density, epsilon, gamma):
    """A task vector before it is combined, by the algorithm's first word."""
    own, nothing = generator_seed(seed, member.digest, member.number, tensor), f32(0)
    size = change.size
    if name == "ties":
        return np.where(top(change, count_of(density, size)), change, nothing)
    if name == "breadcrumbs":
        outliers = int(gamma * size)
        band = top(change, outliers + count_of(density, size)) & ~top(change, outliers)
        return np.where(band, change, nothing)
    if name in ("dare", "della") and density != 1:
        chances = np.full(change.shape, f32(float(density)))
        exact = np.full(change.shape, float(density))
        if name == "della":
            chances = row_chances(change, density, epsilon)
            exact = chances.astype(float)
        return np.where(kept(own, exact), change / chances, nothing)
    return change


def total(values) -> np.float32:
    """SUM of NUM-20."""
    left = values.reshape(-1)
    while True:
        sums = []
        for start in range(0, len(left), 4096):
            block = left[start : start + 4096]
            lanes = np.zeros(64, f32)
            for row in np.pad(block, (0, -len(block) % 64)).reshape(-1, 64):
                lanes = lanes + row
            for width in (32, 16, 8, 4, 2, 1):
                lanes = lanes[:width] + lanes[width : 2 * width]
            sums.append(lanes[0])
        left = np.array(sums, f32)
        if len(left) == 1:
            return left[0]


def scaled(values):
    """MERGE-12: y and e."""
    exponent = max(-126, min(126, math.frexp(float(np.abs(values).max()))[1]))
    return values * f32(math.ldexp(1, -exponent)), exponent


def length(values) -> float:
    small, exponent = scaled(values)
    return math.ldexp(math.sqrt(float(total(small * small))), exponent)


def direction(values):
    small, _ = scaled(values)
    root = math.sqrt(float(total(small * small)))
    return small / f32(root) if root else None


def slerp(group):
    """MERGE-13; the sines are the C library's, whose last bit binary32 does not see."""
    a, b, t = group[0].values, group[1].values, group[1].weight
    u, v = direction(a), direction(b)
    if t in (0, 1) or u is None or v is None:
        return lerp(a, b, float(t))
    c, d = length(u - v), length(u + v)
    if c == 0 or d == 0 or c > 1.99975:
        return lerp(a, b, float(t))
    angle = 2 * math.atan2(c, d)
    left = math.sin(float(1 - t) * angle) / math.sin(angle)
    right = math.sin(float(t) * angle) / math.sin(angle)
    return a * f32(left) + b * f32(right)


def model_stock(base, group):
    """MERGE-14."""
    ways = [direction(one.values - base) for one in group]
    cosines = [
        0.0 if u is None or v is None else min(1.0, max(-1.0, float(total(u * v))))
        for u, v in combinations(ways, 2)
    ]
    x, n = sum(cosines) / len(cosines), len(group)
    share = n * x / (1 + (n - 1) * x) if x > 0 else 0.0
    equal = [Member(one.values, Fraction(1), one.digest, one.number) for one in group]
    return lerp(base, soup(equal), share)


def merged(algorithm, base, models, *, seed, name, weights, scale, **sparsity):
    """What the rules give; arrays of binary32, weights and the rest as fractions."""
    group = members(models, weights)
    if algorithm == "soup":
        return soup(group)
    if algorithm == "slerp":
        return slerp(group)
    if algorithm == "model-stock":
        return model_stock(base, group)
    first, _, _ = algorithm.partition("-")
    changes = [
        (one.weight, sparse(first, one.values - base, one, seed=seed, tensor=name, **sparsity))
        for one in group
    ]
    elects = algorithm.endswith("ties") or algorithm == "della"
    change = agreed(changes) if elects else added(changes)
    return moved(base, change * f32(float(scale)))
