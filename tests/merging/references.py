"""Each method once more, in NumPy's float64 and from its paper: the tests' independent opinion."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np

Arrays = list[np.ndarray]


def soup(models: Arrays, weights: list[float]) -> np.ndarray:
    return sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights)


def linear(base: np.ndarray, changes: Arrays, weights: list[float], scale: float) -> np.ndarray:
    return base + scale * sum(w * c for w, c in zip(weights, changes, strict=True))


def elected(base: np.ndarray, changes: Arrays, weights: list[float], scale: float) -> np.ndarray:
    """TIES, steps 2 and 3, one element at a time."""
    merged = base.copy().reshape(-1)
    flat = [c.reshape(-1) for c in changes]
    for i in range(merged.size):
        column = [(w, c[i]) for w, c in zip(weights, flat, strict=True)]
        sign = np.sign(sum(w * c for w, c in column))
        agree = [(w, c) for w, c in column if c != 0 and np.sign(c) == sign and w > 0]
        if agree:
            merged[i] += scale * sum(w * c for w, c in agree) / sum(w for w, _ in agree)
    return merged.reshape(base.shape)


def top(change: np.ndarray, count: int) -> np.ndarray:
    """Which `count` elements have the largest magnitude; of equals the first."""
    order = np.argsort(-np.abs(change).reshape(-1), kind="stable")
    kept = np.zeros(change.size, bool)
    kept[order[:count]] = True
    return kept.reshape(change.shape)


def trimmed(change: np.ndarray, count: int) -> np.ndarray:
    return change * top(change, count)


def banded(change: np.ndarray, outliers: int, count: int) -> np.ndarray:
    return change * (top(change, outliers + count) & ~top(change, outliers))


def keep_chances(change: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """DELLA's 1 - p_i, a row at a time."""
    rows = np.abs(change).reshape(1 if change.ndim < 2 else change.shape[0], -1)
    chances = np.empty_like(rows)
    drop_least = (1 - density) - epsilon / 2
    for row, out in zip(rows, chances, strict=True):
        for rank, index in enumerate(np.argsort(-row, kind="stable")):
            out[index] = 1 - (drop_least + epsilon / len(row) * rank)
    return chances.reshape(change.shape)


def slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def model_stock(base: np.ndarray, models: Arrays) -> np.ndarray:
    changes = [m - base for m in models]
    cosines = [
        (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(changes, 2)
    ]
    cosine, n = np.mean(cosines), len(models)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(models, axis=0) + (1 - t) * base


def generator_seed(seed: int, digest: str, occurrence: int, name: str) -> int:
    """The seed that MERGE-6 says."""
    text = f"kolm_build 2026 merge v1 {seed} {digest} {occurrence} {name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def kept(seed: int, chances: np.ndarray) -> np.ndarray:
    """The Bernoulli draws that numerics.md, NUM-60 to NUM-63, gives a generator of this seed."""
    words = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 1 << 32, 2, dtype=np.uint64)
    drawn = _philox(seed, int(words[0]) << 32 | int(words[1]), chances.size)
    return (drawn < np.floor(chances.reshape(-1) * 2.0**32)).reshape(chances.shape)


def _philox(seed: int, stream: int, count: int) -> np.ndarray:
    """The first words of Philox4x32-10, many blocks at once."""
    low = np.uint64(0xFFFFFFFF)
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    a, b = block & low, block >> np.uint64(32)
    c = np.full_like(block, stream & 0xFFFFFFFF)
    d = np.full_like(block, stream >> 32)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (right >> np.uint64(32)) ^ b ^ np.uint64(key[0]),
            right & low,
            (left >> np.uint64(32)) ^ d ^ np.uint64(key[1]),
            left & low,
        )
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack([a, b, c, d], axis=1).reshape(-1)[:count]
