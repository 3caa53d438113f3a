"""K-scores and verdicts."""

from kolm_build.core.kscore import Evidence, Thresholds, gate, score

_DEMO = {
    "rows": 200,
    "correct": 142,
    "verified": 198,
    "base_correct": 20,
    "weight_bytes": 269_060_552,
    "flops_per_request": 12_345_678_901,
    "bytes_per_request": 2_152_484_416,
    "size_budget_bytes": 300_000_000,
    "latency_budget_us": 150_000,
    "cost_budget_microusd": 2_000,
    "device_flops_per_s": 100_000_000_000,
    "device_bytes_per_s": 20_000_000_000,
    "device_microusd_per_hour": 50_000,
}
_CHANGES: list[dict[str, int | None]] = [
    {},
    {"correct": 200, "verified": 200, "latency_budget_us": 1},
    {"correct": 0, "verified": 0, "base_correct": None},
    {"weight_bytes": 600_000_000},
    {"weight_bytes": 300_000_001},
    {"weight_bytes": 450_000_000},
    {"size_budget_bytes": 1},
    {"rows": 7, "correct": 1, "verified": 6, "base_correct": 0},
    {"rows": 3, "correct": 2, "verified": 1, "base_correct": 3},
    {"rows": 20_000, "correct": 1, "verified": 3, "base_correct": 5},
    {"bytes_per_request": 10**12, "cost_budget_microusd": 1},
    {"device_microusd_per_hour": 0, "flops_per_request": 0, "bytes_per_request": 0},
]
_GATES = [("0.85", "0", "0"), ("0.5", "0.25", "0.9"), ("0", "1", "1")]


def vectors() -> dict[str, object]:
    scores = [score(Evidence(**(_DEMO | change))) for change in _CHANGES]  # type: ignore[arg-type]  # its own
    return {
        "scores": [one.to_value() for one in scores],
        "gates": [
            {
                "score": index,
                "verdict": gate(
                    one, Thresholds.parse(k=k, accuracy=accuracy, coverage=coverage)
                ).to_value(),
            }
            for index, one in enumerate(scores)
            for k, accuracy, coverage in _GATES
        ],
    }
