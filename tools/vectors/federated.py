"""Rounds of federated training: shares, numbers, masks, noise, records."""

from decimal import Decimal
from hashlib import sha256

from kolm_build.attest.rounds import KeyPair, Shares, commitment, pair_seed
from kolm_build.core.digest import Digest
from kolm_build.core.federated import shamir
from kolm_build.core.federated.fixed_point import clipped, to_fixed
from kolm_build.core.federated.gaussian import gaussian_noise
from kolm_build.core.federated.keystream import Purpose, keystream
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.core.federated.privacy import spent
from kolm_build.core.federated.round import Opening, Round, Site
from kolm_build.core.federated.sealed import Secret
from kolm_build.steps.federated.seal import seal

_ROWS = {"north": 2, "south": 3, "west": 5}
_VALUES = [0.5, -0.25, 1.0000001192092896, -3.0, 1e-9]
_LOSSES = [
    (1, "1", "0.00001", "1"),
    (10, "1.1", "0.00001", "1"),
    (100, "4", "0.000001", "1"),
    (1000, "2", "0.00001", "0.05"),
]
_BITS = 24


def _bytes(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _round(number: int, **plan: object) -> Round:
    opening = Opening(
        number=number,
        nonce=_bytes(f"nonce {number}"),
        previous=None if number == 1 else Digest(_bytes("previous")),
        base=Digest(_bytes("base")),
        adapter=Digest(_bytes("adapter")),
        state=Digest(_bytes("state")),
        plan=FederationPlan.from_value({"v": 1, "training": {"epochs": 1}, **plan}),
    )
    sites = [
        Site(
            name=name,
            key=_bytes(f"key of {name}"),
            rows=rows,
            agreement=_bytes(f"agreement of {name}"),
            mask=_bytes(f"mask of {name}"),
            commitment=_bytes(f"commitment of {name}"),
        )
        for name, rows in _ROWS.items()
    ]
    return Round(opening=opening, sites=tuple(sites))


_PRIVATE = _round(
    1, method="dp-fed-avg", weight="equal", noise_multiplier="0.5", clip="1.5", fraction_bits=_BITS
)
_PLAIN_STEPS = {
    "optimiser": "sgd",
    "schedule": "constant",
    "max_grad_norm": "0",
    "weight_decay": "0",
}
_ROUNDS = (_round(1), _round(2, method="scaffold", training=_PLAIN_STEPS), _PRIVATE)


def vectors() -> dict[str, object]:
    return {
        "shamir": [_shared(3, 5), _shared(1, 2)],
        "fixed": [_fixed()],
        "keystream": [_stream("mask"), _stream("noise")],
        "noise": [_noise(variance) for variance in (1, 1000, 10**14)],
        "pair": [_pair()],
        "commitment": [
            {"seed": _bytes("own").hex(), "commitment": commitment(_bytes("own")).hex()}
        ],
        "share": [_share()],
        "round": [
            {
                "record": one.encode().hex(),
                "id": str(one.id),
                "noise_variance": str(one.plan.noise_variance),
            }
            for one in _ROUNDS
        ],
        "seal": [_sealed()],
        "privacy": [_privacy(*one) for one in _LOSSES],
    }


def _shared(threshold: int, count: int) -> dict[str, object]:
    random = b"".join(_bytes(f"random {at}") for at in range(2 * (threshold - 1)))
    secret = _bytes("secret")
    shares = shamir.split(secret, threshold=threshold, shares=count, random=random)
    return {
        "secret": secret.hex(),
        "threshold": threshold,
        "random": random.hex(),
        "shares": {str(number): share.hex() for number, share in shares.items()},
    }


def _fixed() -> dict[str, object]:
    numbers, bound = to_fixed(_VALUES, _BITS), _PRIVATE.plan.bound
    return {
        "bits": _BITS,
        "values": [value.hex() for value in _VALUES],
        "fixed": numbers,
        "bound": bound,
        "clipped": clipped(numbers, bound),
    }


def _stream(purpose: Purpose) -> dict[str, object]:
    seed = _bytes("seed")
    data = keystream(seed, purpose=purpose, length=40)
    return {"seed": seed.hex(), "purpose": purpose, "bytes": data.hex()}


def _noise(variance: int) -> dict[str, object]:
    drawn = gaussian_noise(_bytes("noise"), count=16, variance=variance)
    return {"seed": _bytes("noise").hex(), "variance": str(variance), "drawn": drawn}


def _pair() -> dict[str, object]:
    a, b = KeyPair.of(_bytes("a")), KeyPair.of(_bytes("b"))
    names, round_id = ("north", "south"), _PRIVATE.id.raw
    return {
        "private": a.private.hex(),
        "public": b.public.hex(),
        "other_private": b.private.hex(),
        "round": round_id.hex(),
        "names": list(names),
        "seed": pair_seed(a, b.public, round_id=round_id, names=names).hex(),
    }


def _share() -> dict[str, object]:
    a, b = KeyPair.of(_bytes("a")), KeyPair.of(_bytes("b"))
    shares, round_id = Shares(mask=b"m" * 33, own=b"o" * 33), _PRIVATE.id.raw
    sealed = shares.seal(a, b.public, round_id=round_id, sender="north", receiver="south")
    return {
        "private": a.private.hex(),
        "public": b.public.hex(),
        "round": round_id.hex(),
        "sender": "north",
        "receiver": "south",
        "mask": shares.mask.hex(),
        "own": shares.own.hex(),
        "sealed": sealed.hex(),
    }


def _sealed() -> dict[str, object]:
    pairs = {"north": _bytes("pair north"), "west": _bytes("pair west")}
    secret = Secret(pairs=pairs, own=_bytes("own"), noise=_bytes("noise"))
    vector = clipped(to_fixed(_VALUES[:4], _BITS), _PRIVATE.plan.bound)
    made = seal(vector, _PRIVATE, "south", secret)
    return {
        "record": _PRIVATE.encode().hex(),
        "site": "south",
        "vector": vector,
        "pairs": {name: seed.hex() for name, seed in pairs.items()},
        "own": _bytes("own").hex(),
        "noise": _bytes("noise").hex(),
        "sealed": [str(number) for number in made.tolist()],
    }


def _privacy(rounds: int, noise: str, delta: str, rate: str) -> dict[str, object]:
    loss = spent(
        rounds=rounds,
        noise_multiplier=Decimal(noise),
        delta=Decimal(delta),
        sampling_rate=Decimal(rate),
    )
    return {
        "rounds": rounds,
        "noise_multiplier": noise,
        "delta": delta,
        "sampling_rate": rate,
        "epsilon": str(loss.epsilon),
    }
