"""Preference optimisation: of two answers the better one, of one answer good or bad.

In the formulas w is the chosen answer, l the rejected one, R(y) = log p(y) - log p_ref(y), s the
sigmoid, and h = R(w) - R(l).
"""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm, Choice, Decimal, Parameter

WITH_REFERENCE = "4 forward (2 of them once, for the reference), 2 backward"
WITHOUT_REFERENCE = "2 forward, 2 backward"
SINGLE = "2 forward (1 of them once, for the reference), 1 backward"


def _beta(default: str = "0.1") -> Decimal:
    return Decimal(name="beta", default=default, most="100", help="how close the policy is held")


def _smoothing(default: str) -> Decimal:
    return Decimal(
        name="label_smoothing", default=default, most="0.49", help="share of pairs thought swapped"
    )


def _nll(default: str) -> Decimal:
    return Decimal(
        name="nll_weight", default=default, most="1000", help="factor of the chosen answers' NLL"
    )


def _gamma() -> Decimal:
    return Decimal(name="gamma", default="0.5", most="100", help="the margin that is asked for")


def _alpha(default: str, most: str, text: str) -> Decimal:
    return Decimal(name="alpha", default=default, most=most, help=text)


def _row(
    name: str,
    title: str,
    paper: str,
    minimises: str,
    parameters: tuple[Parameter, ...],
    *,
    oracle: str,
    passes: str = WITH_REFERENCE,
    schema: str = "pairs",
) -> Algorithm:
    return Algorithm(
        id=name,
        family="preference",
        title=title,
        paper=paper,
        minimises=minimises,
        schema=schema,
        parameters=parameters,
        step=name,
        backing=f"kolm_build.steps.objectives.{name.replace('-', '_')}",
        oracle=oracle,
        passes=passes,
    )


def _trl(loss: str) -> str:
    return f"trl.DPOTrainer, {loss}"


ROWS: tuple[Algorithm, ...] = (
    _row(
        "dpo",
        "Direct preference optimisation",
        "arXiv:2305.18290, equation 7",
        "-log s(beta h)",
        (_beta(),),
        oracle=_trl("sigmoid"),
    ),
    _row(
        "cdpo",
        "Conservative direct preference optimisation",
        "E. Mitchell, A note on DPO with noisy preferences, 2023, equation 4",
        "-(1 - e) log s(beta h) - e log s(-beta h)",
        (_beta(), _smoothing("0.1")),
        oracle="NumPy",
    ),
    _row(
        "rdpo",
        "Robust direct preference optimisation",
        "arXiv:2403.00409, equation 12",
        "(-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e)",
        (_beta(), _smoothing("0.1")),
        oracle=_trl("robust"),
    ),
    _row(
        "lndpo",
        "Length-normalised direct preference optimisation",
        "arXiv:2411.15124, section 5.1.2",
        "-log s(beta (R(w) / |w| - R(l) / |l|))",
        (_beta("5"),),
        oracle=_trl("sigmoid_norm"),
    ),
    _row(
        "ipo",
        "Identity preference optimisation",
        "arXiv:2310.12036, equation 17",
        "(R(w) / |w| - R(l) / |l| - 1 / (2 beta))^2",
        (_beta(),),
        oracle=_trl("ipo"),
    ),
    _row(
        "rso",
        "Hinge loss on log ratios, of statistical rejection sampling",
        "arXiv:2309.06657, equation 11",
        "max(0, 1 - beta h)",
        (_beta(),),
        oracle=_trl("hinge"),
    ),
    _row(
        "exo",
        "Efficient exact optimisation of pairs",
        "arXiv:2402.00856, equation 16",
        "KL((s(beta h), s(-beta h)) || (1 - e, e))",
        (_beta(), _smoothing("0.001")),
        oracle=_trl("exo_pair"),
    ),
    _row(
        "nca",
        "Noise contrastive alignment of pairs",
        "arXiv:2402.05369, equation 12",
        "-log s(beta R(w)) - log s(-beta R(w)) / 2 - log s(-beta R(l)) / 2",
        (_beta(),),
        oracle=_trl("nca_pair"),
    ),
    _row(
        "sppo",
        "Self-play preference optimisation, hard labels",
        "arXiv:2405.00675, equation 4.7",
        "(R(w) - 1 / (2 beta))^2 + (R(l) + 1 / (2 beta))^2",
        (_beta(),),
        oracle=_trl("sppo_hard"),
    ),
    _row(
        "aot",
        "Alignment by optimal transport, paired",
        "arXiv:2406.05882, equation 10",
        "-log s(beta (k-th of log p(w) - log p(l), sorted, - k-th of the reference's, sorted))",
        (_beta(), _smoothing("0")),
        oracle=_trl("aot"),
    ),
    _row(
        "aot-unpaired",
        "Alignment by optimal transport, unpaired",
        "arXiv:2406.05882, equation 9",
        "-log s(beta (k-th of R(w), sorted, - k-th of R(l), sorted))",
        (_beta(), _smoothing("0")),
        oracle=_trl("aot_unpaired"),
    ),
    _row(
        "apo-zero",
        "Anchored preference optimisation, zero",
        "arXiv:2408.06266, equation 7",
        "1 - s(beta R(w)) + s(beta R(l))",
        (_beta(),),
        oracle=_trl("apo_zero"),
    ),
    _row(
        "apo-down",
        "Anchored preference optimisation, down",
        "arXiv:2408.06266, equation 8",
        "s(beta R(w)) + 1 - s(beta h)",
        (_beta(),),
        oracle=_trl("apo_down"),
    ),
    _row(
        "apo-zero-unpaired",
        "Anchored preference optimisation of single answers",
        "arXiv:2408.06266, equation 7",
        "1 - s(beta R(y)) of a good answer, s(beta R(y)) of a bad one",
        (_beta(),),
        oracle="by hand",
        passes=SINGLE,
        schema="feedback",
    ),
    _row(
        "bco-pair",
        "Binary classifier optimisation of pairs",
        "arXiv:2404.04656, equation 8",
        "-log s(beta R(w)) - log s(-beta R(l))",
        (_beta(),),
        oracle=_trl("bco_pair"),
    ),
    _row(
        "bco",
        "Binary classifier optimisation",
        "arXiv:2404.04656, equation 13",
        "-log s(beta R(y) - d) of a good answer, -log s(d - beta R(y)) of a bad one",
        (_beta(),),
        oracle="by hand",
        passes=SINGLE,
        schema="feedback",
    ),
    _row(
        "kto",
        "Kahneman-Tversky optimisation",
        "arXiv:2402.01306, equation 8",
        "lambda (1 - s(+-beta (R(y) - z))), + for a good answer, z the mean R of other answers",
        (
            _beta(),
            Decimal(name="bad_weight", default="1", most="1000", help="lambda of bad answers"),
            Decimal(name="good_weight", default="1", most="1000", help="lambda of good answers"),
        ),
        oracle="by hand",
        passes="4 forward (1 of them once, for the reference), 1 backward",
        schema="feedback",
    ),
    _row(
        "discopop",
        "Discovered preference optimisation",
        "arXiv:2406.08414, equation 5",
        "-(1 - g) log s(beta h) + g exp(-beta h), g = s(beta h / tau)",
        (_beta(), Decimal(name="tau", default="0.05", most="100", help="how sharply it turns")),
        oracle=_trl("discopop"),
    ),
    _row(
        "f-dpo",
        "Direct preference optimisation with another divergence",
        "arXiv:2309.16240, equation 5",
        "-log s(beta (f'(p / p_ref of w) - f'(p / p_ref of l)))",
        (
            _beta(),
            Choice(
                name="divergence",
                options=("forward-kl", "jensen-shannon", "alpha-half"),
                default="forward-kl",
                help="f of the divergence",
            ),
        ),
        oracle=_trl("f_divergence_type"),
    ),
    _row(
        "wpo",
        "Weighted preference optimisation",
        "arXiv:2406.11827, equation 4",
        "-u(w) u(l) log s(beta h), u how likely the policy were to say it",
        (_beta(),),
        oracle="NumPy",
        passes="6 forward (2 of them once, for the reference), 2 backward",
    ),
    _row(
        "ld-dpo",
        "Length-desensitised direct preference optimisation",
        "arXiv:2409.06411, equation 9",
        "-log s(beta h), tokens beyond the shorter answer's length counting alpha",
        (_beta(), _alpha("0.5", "1", "what the longer answer's last tokens count")),
        oracle="by hand",
    ),
    _row(
        "rpo",
        "Direct preference optimisation with the chosen answers' likelihood",
        "arXiv:2404.19733, equation 1",
        "-log s(beta h) + nll_weight NLL(w)",
        (_beta(), _nll("1")),
        oracle=_trl("sigmoid and sft"),
    ),
    _row(
        "dpop",
        "DPO-positive",
        "arXiv:2402.13228, equation 3",
        "-log s(beta (h - penalty max(0, -R(w))))",
        (
            _beta(),
            Decimal(name="penalty", default="5", most="1000", help="factor of the loss of w"),
        ),
        oracle="by hand",
    ),
    _row(
        "odpo",
        "Direct preference optimisation with an offset",
        "arXiv:2402.10571, equation 8",
        "-log s(beta h - alpha log(margin of the row))",
        (_beta(), _alpha("1", "1000", "factor of the offset")),
        oracle="NumPy",
    ),
    _row(
        "orpo",
        "Odds ratio preference optimisation",
        "arXiv:2403.07691, equation 6",
        "NLL(w) - odds_weight log s(log odds of w - log odds of l)",
        (Decimal(name="odds_weight", default="0.1", most="1000", help="factor of the odds ratio"),),
        oracle="trl.experimental.orpo",
        passes=WITHOUT_REFERENCE,
    ),
    _row(
        "cpo",
        "Contrastive preference optimisation",
        "arXiv:2401.08417, equation 5",
        "-log s(beta (log p(w) - log p(l))) + nll_weight NLL(w)",
        (_beta(), _nll("1")),
        oracle="trl.experimental.cpo, sigmoid",
        passes=WITHOUT_REFERENCE,
    ),
    _row(
        "simpo",
        "Simple preference optimisation",
        "arXiv:2405.14734, equation 6",
        "-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma)",
        (_beta("2"), _gamma()),
        oracle="trl.experimental.cpo, simpo",
        passes=WITHOUT_REFERENCE,
    ),
    _row(
        "alphapo",
        "Preference optimisation with a shaped reward",
        "arXiv:2501.03884, equation 6",
        "-log s(beta (r(w) - r(l)) - gamma), r = (1 - p^(-alpha / |y|)) / alpha",
        (_beta("2"), _gamma(), _alpha("0.25", "10", "the shape; at 0 this is simpo")),
        oracle="trl.experimental.cpo, alpha",
        passes=WITHOUT_REFERENCE,
    ),
    _row(
        "slic",
        "Sequence likelihood calibration",
        "arXiv:2305.10425, equation 1",
        "max(0, beta - log p(w) + log p(l)) + nll_weight NLL(w)",
        (_beta("1"), _nll("0.1")),
        oracle="NumPy",
        passes=WITHOUT_REFERENCE,
    ),
)
