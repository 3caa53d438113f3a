"""Distillation: a student learns from a teacher.

In the formulas t is the teacher's distribution of the next token, q the student's, KL(t || q) the
sum of t log(t / q); each is the mean over the answers' tokens.
"""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm, Decimal, Integer, Parameter, Role

TEACHER = Role(name="teacher", kind="model", help="the model to learn from")
KEPT_TEACHER = Role(
    name="teacher", kind="logits", help="the model to learn from; it runs once for all students"
)
ASKED_TEACHER = Role(
    name="teacher",
    kind="model",
    recorded=True,
    help="the model to ask; without it the rows are recorded answers with a provenance",
)
ONE_EACH = "2 forward (1 of the teacher), 1 backward"

MAX_NEW_TOKENS = Integer(
    name="max_new_tokens", default=64, least=1, help="most tokens of what is said"
)


def _hard(default: str = "0") -> Decimal:
    return Decimal(name="hard_weight", default=default, help="share of the answers' own NLL")


def _temperature(default: str = "1") -> Decimal:
    return Decimal(name="temperature", default=default, most="100", help="logits are divided by it")


def _row(
    name: str,
    title: str,
    paper: str,
    minimises: str,
    parameters: tuple[Parameter, ...],
    *,
    oracle: str = "NumPy",
    passes: str = ONE_EACH,
    schema: str = "answers",
    roles: tuple[Role, ...] = (TEACHER,),
) -> Algorithm:
    return Algorithm(
        id=name,
        family="distillation",
        title=title,
        paper=paper,
        minimises=minimises,
        schema=schema,
        parameters=parameters,
        roles=roles,
        step=name,
        backing=f"kolm_build.steps.objectives.{name.replace('-', '_')}",
        oracle=oracle,
        passes=passes,
    )


ROWS: tuple[Algorithm, ...] = (
    _row(
        "kd",
        "Distillation of soft targets, forward divergence",
        "arXiv:1503.02531, section 2",
        "(1 - h) T^2 KL(t || q) at temperature T + h NLL",
        (_hard("0.1"), _temperature("2")),
        oracle="trl.experimental.gkd, beta 0",
    ),
    _row(
        "kd-cached",
        "Distillation of soft targets that were kept, forward divergence over the likeliest tokens",
        "arXiv:1503.02531, section 2",
        "(1 - h) T^2 KL(t || q), all but t's likeliest tokens taken as one, + h NLL",
        (
            _hard("0.1"),
            _temperature("2"),
            Integer(
                name="teacher_top_k", default=64, least=1, help="tokens that are kept at each place"
            ),
        ),
        oracle="kd, where every token is kept",
        passes="1 forward, 1 backward; once for all students, 1 forward of the teacher",
        roles=(KEPT_TEACHER,),
    ),
    _row(
        "kd-reverse",
        "Distillation with the reverse divergence, off policy",
        "arXiv:2306.08543, equation 1",
        "KL(q || t)",
        (_hard(), _temperature()),
        oracle="trl.experimental.gkd, beta 1",
    ),
    _row(
        "kd-jeffreys",
        "Distillation with both divergences",
        "H. Jeffreys, An invariant form for the prior probability, 1946",
        "KL(t || q) + KL(q || t)",
        (_hard(), _temperature()),
    ),
    _row(
        "kd-jsd",
        "Distillation with the generalised Jensen-Shannon divergence",
        "arXiv:2306.13649, equation 1",
        "beta KL(t || m) + (1 - beta) KL(q || m), m = beta t + (1 - beta) q",
        (_hard(), _temperature(), Decimal(name="beta", default="0.5", help="weight of t in m")),
        oracle="trl.experimental.gkd",
    ),
    _row(
        "kd-skew",
        "Distillation with the skew forward divergence",
        "arXiv:2402.03898, equation 5",
        "KL(t || alpha t + (1 - alpha) q)",
        (_hard(), _temperature(), Decimal(name="alpha", default="0.1", most="0.99", help="skew")),
    ),
    _row(
        "kd-skew-reverse",
        "Distillation with the skew reverse divergence",
        "arXiv:2402.03898, equation 6",
        "KL(q || alpha q + (1 - alpha) t)",
        (_hard(), _temperature(), Decimal(name="alpha", default="0.1", most="0.99", help="skew")),
    ),
    _row(
        "kd-tvd",
        "Distillation with the total variation distance",
        "arXiv:2307.15190, section 3.2",
        "sum |t - q| / 2",
        (_hard(), _temperature()),
    ),
    _row(
        "kd-hidden",
        "Distillation of hidden states",
        "arXiv:1412.6550, equation 3; arXiv:1909.10351, equation 8",
        "(1 - h) mean of (last hidden state - the teacher's)^2 + h NLL",
        (_hard("0.5"),),
    ),
    _row(
        "minilm",
        "Distillation of attention relations",
        "arXiv:2012.15828, equations 4 to 6",
        "(1 - h) sum over Q, K, V of KL(teacher's relations || student's) + h NLL",
        (
            _hard("0.5"),
            Integer(name="relation_heads", default=4, least=1, help="heads of a relation"),
            _temperature(),
        ),
    ),
    _row(
        "uld",
        "Distillation across tokenizers, universal logit distillation",
        "arXiv:2402.12030, equation 6",
        "NLL + distance_weight sum |k-th likeliest of t - k-th likeliest of q|",
        (
            Decimal(
                name="distance_weight", default="1.5", most="1000", help="factor of the distance"
            ),
        ),
    ),
    _row(
        "seq-kd",
        "Distillation of sequences",
        "arXiv:1606.07947, section 3.2",
        "NLL of the teacher's likeliest answer, or of its recorded one",
        (MAX_NEW_TOKENS,),
        passes="1 forward, 1 backward; once, the teacher answers",
        schema="prompts",
        oracle="sft",
        roles=(ASKED_TEACHER,),
    ),
    _row(
        "gkd",
        "Generalised distillation on the student's own answers",
        "arXiv:2306.13649, algorithm 1",
        "beta KL(t || m) + (1 - beta) KL(q || m) at tokens that q drew",
        (
            Decimal(name="beta", default="0.5", help="weight of t in m"),
            MAX_NEW_TOKENS,
            _temperature(),
            Decimal(name="top_p", default="1", help="mass of the tokens that are drawn from"),
        ),
        passes="an answer drawn, 2 forward (1 of the teacher), 1 backward",
        schema="prompts",
        oracle="trl.experimental.gkd",
    ),
)
