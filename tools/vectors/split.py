"""Split decisions."""

from kolm_build.core.split import is_holdout

_KEYS = [*(f"row {index}" for index in range(20)), "", "été", "日本語", "x" * 24, "x" * 300, "a\nb"]
_RULES = [("0", 5), ("kolm", 5), ("", 5), ("é", 2), ("1", 1000)]


def vectors() -> dict[str, object]:
    return {
        "decisions": [
            {
                "key": key,
                "seed": seed,
                "modulus": modulus,
                "holdout": is_holdout(key, seed, modulus),
            }
            for seed, modulus in _RULES
            for key in _KEYS
        ]
    }
