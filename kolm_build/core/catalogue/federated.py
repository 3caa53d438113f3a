"""Federated training: the methods of a plan (spec/algorithms-federated.md).

A method is no stage of a recipe: `kolm federated` reads it from the plan of a federation.toml.
"""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import (
    FEDERATION,
    Algorithm,
    Choice,
    Decimal,
    Integer,
    Parameter,
)

SERVER_RATE = Decimal(
    name="server_rate", default="1", most="1000", help="rate of the server's step"
)
BETA1 = Decimal(name="beta1", default="0.9", help="momentum of the server")
BETA2 = Decimal(name="beta2", default="0.99", help="decay of the server's second moment")
TAU = Decimal(name="tau", default="0.001", help="added to the root of the second moment")

EVERY: tuple[Parameter, ...] = (
    Decimal(name="clip", default="16", most="65536", help="greatest norm of an update"),
    Integer(name="fraction_bits", default=24, least=8, most=40, help="binary places of an update"),
    Integer(name="threshold", default=2, least=1, most=1 << 12, help="sites that must stay"),
    Choice(name="weight", options=("rows", "equal"), default="rows", help="what a site counts"),
)
"""What every plan says beside its method's own."""

NOISE: tuple[Parameter, ...] = (
    Decimal(
        name="noise_multiplier",
        default="0",
        most="1000",
        help="standard deviation of the noise over the clip",
    ),
    Decimal(name="delta", default="0.00001", help="chance for which the privacy loss is told"),
)


def _method(
    name: str,
    title: str,
    paper: str,
    minimises: str,
    *parameters: Parameter,
    oracle: str = "a NumPy reference in the tests",
    passes: str = "1 forward, 1 backward",
) -> Algorithm:
    return Algorithm(
        id=name,
        axis=FEDERATION,
        family="federated",
        title=title,
        paper=paper,
        minimises=minimises,
        schema="answers",
        parameters=(*EVERY, *parameters),
        step="federated-update",
        backing="kolm_build.steps.federated",
        oracle=oracle,
        passes=passes,
        trains=False,
    )


_MU = Decimal(name="mu", default="0.01", most="1000", help="strength of the pull to the start")

ROWS: tuple[Algorithm, ...] = (
    _method(
        "fed-avg",
        "Federated averaging, of LoRA adapters (FedIT)",
        "arXiv:1602.05629, algorithm 1; arXiv:2305.05644",
        "x + rate * weighted mean of the sites' updates",
        SERVER_RATE,
    ),
    _method(
        "fed-prox",
        "FedProx",
        "arXiv:1812.06127, equation 2",
        "each site: its loss + (mu / 2) |w - x|^2",
        SERVER_RATE,
        _MU,
        oracle="fed-avg where mu is 0, bit for bit",
    ),
    _method(
        "fed-avgm",
        "Federated averaging with server momentum",
        "arXiv:1909.06335, section 3.3",
        "v = beta1 v + mean; x + rate * v",
        SERVER_RATE,
        BETA1,
        oracle="fed-avg where beta1 is 0, bit for bit",
    ),
    _method(
        "fed-adam",
        "FedAdam",
        "arXiv:2003.00295, algorithm 2",
        "x + rate * m / (sqrt(v) + tau), v = beta2 v + (1 - beta2) mean^2",
        SERVER_RATE,
        BETA1,
        BETA2,
        TAU,
    ),
    _method(
        "fed-yogi",
        "FedYogi",
        "arXiv:2003.00295, algorithm 2",
        "as fed-adam, v = v - (1 - beta2) mean^2 sign(v - mean^2)",
        SERVER_RATE,
        BETA1,
        BETA2,
        TAU,
    ),
    _method(
        "fed-adagrad",
        "FedAdagrad",
        "arXiv:2003.00295, algorithm 2",
        "as fed-adam, v = v + mean^2",
        SERVER_RATE,
        BETA1,
        TAU,
    ),
    _method(
        "scaffold",
        "SCAFFOLD",
        "arXiv:1910.06378, algorithm 1, option II",
        "each site: gradient + c - c_i; c + (1/N) sum of the changes of c_i",
        SERVER_RATE,
    ),
    _method(
        "fed-dyn",
        "FedDyn",
        "arXiv:2111.04263, algorithm 1",
        "each site: its loss - <g_i, w> + (mu / 2) |w - x|^2; x = mean - h / mu",
        _MU,
    ),
    _method(
        "ffa-lora",
        "FFA-LoRA: A frozen, so that the mean of B is the mean of B A",
        "arXiv:2403.12313, section 4",
        "as fed-avg, of B alone",
        SERVER_RATE,
    ),
    _method(
        "flora",
        "FLoRA: the sites' factors stacked",
        "arXiv:2409.05976, equation 4",
        "W + sum of p_i (alpha / r) B_i A_i, exactly",
        oracle="the sum of the products",
    ),
    _method(
        "flex-lora",
        "FlexLoRA: the mean of B A, factored by singular values",
        "arXiv:2402.11505, section 3.2",
        "the nearest B A of rank r to the sum of p_i B_i A_i",
        oracle="numpy.linalg.svd",
    ),
    _method(
        "dp-fed-avg",
        "Federated averaging with differential privacy for sites",
        "arXiv:1710.06963, algorithm 1; arXiv:2102.06387",
        "x + rate * mean of clipped updates with discrete Gaussian noise",
        SERVER_RATE,
        *NOISE,
        oracle="dp-accounting (Google), arXiv:1607.00133",
    ),
)
