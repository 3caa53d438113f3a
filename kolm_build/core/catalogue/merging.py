"""Algorithms that merge models (spec/algorithms-merging.md): no rows, no gradients, no adapter."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm, Decimal, Decimals, Parameter, Role

_MOST = "1000"

_WEIGHTS = Decimals(
    name="weights",
    default="1",
    most=_MOST,
    help="each model's weight, in the order of models; one number stands for all",
)
_SIGNED_WEIGHTS = Decimals(
    name="weights",
    default="1",
    least=f"-{_MOST}",
    most=_MOST,
    help="each model's weight, in the order of models; one for all; below 0 to forget a task",
)
_SCALE = Decimal(
    name="scale",
    default="1",
    most=_MOST,
    help="lambda: what the merged task vector is multiplied by",
)


def _density(default: str) -> Decimal:
    return Decimal(
        name="density",
        default=default,
        help="share of a task vector's elements that is kept, above 0",
    )


_EPSILON = Decimal(
    name="epsilon",
    default="0.2",
    help="how far apart the drop rates of a row's smallest and largest element are",
)
_GAMMA = Decimal(
    name="gamma",
    default="0.01",
    help="share of a task vector's elements, the largest, that is left out",
)


def _row(
    name: str,
    *,
    title: str,
    paper: str,
    minimises: str,
    parameters: tuple[Parameter, ...],
    backing: str,
    oracle: str,
    models: str = "the models to merge; the stage's own model is the base",
) -> Algorithm:
    return Algorithm(
        id=name,
        family="merging",
        title=title,
        paper=paper,
        minimises=minimises,
        schema="none",
        parameters=parameters,
        roles=(Role(name="models", kind="models", help=models),),
        step="combine",
        backing=f"kolm_build.steps.merging.{backing}",
        oracle=oracle,
        passes="none: arithmetic on weights",
        trains=False,
    )


_NO_BASE = "the models to merge; the stage's own model lends its tokenizer and configuration"
_PEFT = "peft.utils.merge_utils"
_NUMPY = "the paper's formula in NumPy's float64"

ROWS: tuple[Algorithm, ...] = (
    _row(
        "breadcrumbs",
        title="Model Breadcrumbs",
        paper="arXiv:2312.06795",
        minimises="base + scale * sum w_i mask(tau_i), without outliers and the smallest",
        parameters=(_density("0.9"), _GAMMA, _SCALE, _SIGNED_WEIGHTS),
        backing="breadcrumbs.Breadcrumbs",
        oracle=f"{_PEFT}.magnitude_prune where gamma is 0; {_NUMPY}",
    ),
    _row(
        "breadcrumbs-ties",
        title="Model Breadcrumbs with elected signs",
        paper="arXiv:2312.06795, arXiv:2306.01708",
        minimises="base + scale * mean of mask(tau_i) that have the elected sign",
        parameters=(_density("0.9"), _GAMMA, _SCALE, _WEIGHTS),
        backing="breadcrumbs.Breadcrumbs",
        oracle=_NUMPY,
    ),
    _row(
        "dare-linear",
        title="DARE: drop and rescale, then task arithmetic",
        paper="arXiv:2311.03099",
        minimises="base + scale * sum w_i (m_i * tau_i) / density, m_i ~ Bernoulli(density)",
        parameters=(_density("0.5"), _SCALE, _SIGNED_WEIGHTS),
        backing="dare.Dare",
        oracle=f"{_PEFT}.dare_linear",
    ),
    _row(
        "dare-ties",
        title="DARE: drop and rescale, then elected signs",
        paper="arXiv:2311.03099, arXiv:2306.01708",
        minimises="base + scale * mean of (m_i * tau_i) / density that have the elected sign",
        parameters=(_density("0.5"), _SCALE, _WEIGHTS),
        backing="dare.Dare",
        oracle=f"{_PEFT}.dare_ties",
    ),
    _row(
        "della",
        title="DELLA: drop by magnitude, elect, fuse",
        paper="arXiv:2406.11617",
        minimises="base + scale * mean of (m_i * tau_i) / (1 - p_i) that have the elected sign",
        parameters=(_density("0.5"), _EPSILON, _SCALE, _WEIGHTS),
        backing="della.Della",
        oracle=_NUMPY,
    ),
    _row(
        "della-linear",
        title="DELLA without its election",
        paper="arXiv:2406.11617",
        minimises="base + scale * sum w_i (m_i * tau_i) / (1 - p_i)",
        parameters=(_density("0.5"), _EPSILON, _SCALE, _SIGNED_WEIGHTS),
        backing="della.Della",
        oracle=_NUMPY,
    ),
    _row(
        "model-stock",
        title="Model Stock",
        paper="arXiv:2403.19522",
        minimises="t mean + (1 - t) base, t = N cos / (1 + (N - 1) cos)",
        parameters=(),
        backing="model_stock.ModelStock",
        oracle=_NUMPY,
        models="two models or more; the stage's own model is the base",
    ),
    _row(
        "slerp",
        title="Spherical interpolation",
        paper="Shoemake, SIGGRAPH 1985",
        minimises="sin((1 - t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2",
        parameters=(
            Decimal(name="t", default="0.5", help="how far from the first model to the second"),
        ),
        backing="slerp.Slerp",
        oracle=_NUMPY,
        models="two models; the stage's own model lends its tokenizer and configuration",
    ),
    _row(
        "soup",
        title="Model soup",
        paper="arXiv:2203.05482",
        minimises="sum w_i theta_i / sum w_i",
        parameters=(_WEIGHTS,),
        backing="soup.Soup",
        oracle=_NUMPY,
        models=_NO_BASE,
    ),
    _row(
        "task-arithmetic",
        title="Task arithmetic",
        paper="arXiv:2212.04089",
        minimises="base + scale * sum w_i tau_i, tau_i = theta_i - base",
        parameters=(_SCALE, _SIGNED_WEIGHTS),
        backing="task_arithmetic.TaskArithmetic",
        oracle=f"{_PEFT}.task_arithmetic",
    ),
    _row(
        "ties",
        title="TIES: trim, elect signs, merge",
        paper="arXiv:2306.01708",
        minimises="base + scale * mean of trimmed tau_i that have the elected sign",
        parameters=(_density("0.2"), _SCALE, _WEIGHTS),
        backing="ties.Ties",
        oracle=f"{_PEFT}.ties",
    ),
)
