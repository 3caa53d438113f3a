"""Optimisers: how a stage changes what it trains."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import OPTIMISER, Algorithm, Decimal, Integer

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="adamw",
        axis=OPTIMISER,
        family="optimiser",
        title="Adam with decoupled weight decay",
        paper="arXiv:1711.05101, algorithm 2",
        minimises="two moments for each weight, beta 0.9 and 0.999",
        schema="any",
        backing="torch.optim.AdamW (fused)",
        oracle="its algorithm in NumPy",
        passes="none",
    ),
    Algorithm(
        id="lora-plus",
        axis=OPTIMISER,
        family="optimiser",
        title="AdamW with a rate of its own for B",
        paper="arXiv:2402.12354",
        minimises="adamw; LoRA's B learns at a multiple of the rate",
        schema="any",
        parameters=(
            Decimal(
                name="lora_plus_ratio", default="16", most="10000", help="rate of B over that of A"
            ),
        ),
        backing="torch.optim.AdamW (fused)",
        oracle="peft.optimizers.create_loraplus_optimizer",
        passes="none",
    ),
    Algorithm(
        id="galore",
        axis=OPTIMISER,
        family="optimiser",
        title="Gradient low-rank projection",
        paper="arXiv:2403.03507, algorithm 2",
        minimises="adamw on gradients projected on their leading singular vectors",
        schema="any",
        parameters=(
            Integer(name="galore_interval", default=200, least=1, help="steps between projections"),
            Integer(name="galore_rank", default=128, least=1, help="vectors of a projection"),
            Decimal(
                name="galore_scale", default="0.25", most="1000", help="times a projected change"
            ),
        ),
        backing="kolm_build.steps.optimisers.galore",
        oracle="its algorithm in NumPy; adamw at full rank",
        passes="a few products of each matrix once an interval",
    ),
    Algorithm(
        id="lisa",
        axis=OPTIMISER,
        family="optimiser",
        title="Layerwise importance sampled AdamW",
        paper="arXiv:2403.17919, algorithm 1",
        minimises="adamw on a few layers drawn anew every period, and on what lies outside layers",
        schema="any",
        parameters=(
            Integer(name="lisa_interval", default=20, least=1, help="steps between two draws"),
            Integer(name="lisa_layers", default=2, least=1, help="layers trained at a time"),
        ),
        backing="torch.optim.AdamW (fused), kolm_build.steps.optimisers.lisa",
        oracle="adamw where every layer is drawn",
        passes="none",
    ),
    Algorithm(
        id="badam",
        axis=OPTIMISER,
        family="optimiser",
        title="Block coordinate descent with Adam",
        paper="arXiv:2404.02827, algorithm 1",
        minimises="adamw on one layer after the other, moments new for each",
        schema="any",
        parameters=(Integer(name="badam_interval", default=50, least=1, help="steps on a layer"),),
        backing="torch.optim.AdamW (fused), kolm_build.steps.optimisers.badam",
        oracle="adamw on the layer alone",
        passes="none",
    ),
    Algorithm(
        id="ema",
        axis=OPTIMISER,
        family="optimiser",
        title="AdamW with averaged weights",
        paper="arXiv:1803.05407, section 3; Polyak and Juditsky 1992",
        minimises="adamw; the result is the exponential mean of the weights",
        schema="any",
        parameters=(Decimal(name="ema_decay", default="0.999", help="weight of the mean so far"),),
        backing="torch.optim.AdamW (fused), kolm_build.steps.optimisers.ema",
        oracle="its recurrence; adamw at decay 0",
        passes="none",
    ),
    Algorithm(
        id="sgd",
        axis=OPTIMISER,
        family="optimiser",
        title="Stochastic gradient descent with momentum",
        paper="Polyak 1964",
        minimises="v = m v + g, w = w - rate v",
        schema="any",
        parameters=(
            Decimal(name="sgd_momentum", default="0.9", help="share of the last change kept"),
        ),
        backing="torch.optim.SGD (fused)",
        oracle="its recurrence in NumPy",
        passes="none",
    ),
)
