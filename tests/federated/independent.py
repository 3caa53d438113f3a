"""A second implementation of spec/algorithms-federated.md, from the page alone.

It imports nothing of ours: Lagrange by fractions of integers, noise from a string of bits, the
accountant in binary floating point, X25519 by the ladder of RFC 7748.
"""

import hashlib
import hmac
import math
from fractions import Fraction

import cbor2
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PRIME = 2**256 + 297
FIELD = 2**255 - 19


def share(secret, randoms, number):
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [
        int.from_bytes(randoms[at : at + 64], "big") % PRIME for at in range(0, len(randoms), 64)
    ]
    value = sum(one * number**power for power, one in enumerate(coefficients)) % PRIME
    return value.to_bytes(33, "big")


def joined(shares):
    whole = 0
    for x, share_x in shares.items():
        term = Fraction(int.from_bytes(share_x, "big"))
        for other in shares:
            if other != x:
                term *= Fraction(other, other - x)
        whole += term.numerator * pow(term.denominator, -1, PRIME)
    return (whole % PRIME).to_bytes(32, "big")


def fixed(value, bits):
    return math.trunc(Fraction(value) * 2**bits)


def clipped(values, bound):
    square = sum(value * value for value in values)
    if square <= bound * bound:
        return values
    norm = math.isqrt(square)
    norm += norm * norm < square
    return [math.trunc(Fraction(value * bound, norm)) for value in values]


def stream(seed, purpose, length):
    text = f"kolm_build 2026 federated {purpose} v1".encode()
    return blake3(text, key=seed).digest(length=length)


class Flips:
    """Coin flips, one character each."""

    def __init__(self, seed):
        data = stream(seed, "noise", 1 << 16)
        self.text = "".join(f"{byte:08b}"[::-1] for byte in data)
        self.at = 0

    def flip(self):
        self.at += 1
        return self.text[self.at - 1] == "1"

    def below(self, bound):
        width = (bound - 1).bit_length()
        while True:
            number = sum(self.flip() << place for place in range(width))
            if number < bound:
                return number

    def chance(self, p):
        """Compare a uniform number's binary digits with those of p."""
        while 0 < p < 1:
            p *= 2
            digit = p >= 1
            p -= digit
            bit = self.flip()
            if bit != digit:
                return digit
        return p >= 1

    def exponential(self, p):
        """True with chance exp(-p)."""
        while p > 1:
            if not self.exponential(Fraction(1)):
                return False
            p -= 1
        k = 1
        while self.chance(p / k):
            k += 1
        return k % 2 == 1

    def laplace(self, t):
        while True:
            u = self.below(t)
            if not self.exponential(Fraction(u, t)):
                continue
            v = 0
            while self.exponential(Fraction(1)):
                v += 1
            x = u + t * v
            sign = self.flip()
            if not (sign and x == 0):
                return -x if sign else x

    def gaussian(self, variance):
        t = math.isqrt(variance) + 1
        while True:
            y = self.laplace(t)
            gap = abs(y) - Fraction(variance, t)
            if self.exponential(gap * gap / (2 * variance)):
                return y


def x25519(private, public):
    """RFC 7748, section 5."""
    k = int.from_bytes(private, "little") & ~7 & ((1 << 255) - 1) | 1 << 254
    u = int.from_bytes(public, "little") & ((1 << 255) - 1)
    x1, x2, z2, x3, z3, swap = u, 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = (x2 + z2) % FIELD, (x2 - z2) % FIELD, (x3 + z3) % FIELD, (x3 - z3) % FIELD
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        x3, z3 = (da + cb) ** 2 % FIELD, x1 * (da - cb) ** 2 % FIELD
        e = aa - bb
        x2, z2 = aa * bb % FIELD, e * (aa + 121665 * e) % FIELD
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, FIELD - 2, FIELD) % FIELD).to_bytes(32, "little")


def derived(private, public, info):
    """HKDF-SHA256 without salt, 32 bytes."""
    key = hmac.digest(bytes(32), x25519(private, public), "sha256")
    return hmac.digest(key, cbor2.dumps(info, canonical=True) + b"\1", "sha256")


def pair(private, public, round_id, names):
    info = ["kolm_build 2026 federated pair v1", round_id, *sorted(names)]
    return derived(private, public, info)


def sealed_share(private, public, round_id, names, shares):
    """For the second of `names`, by the first."""
    info = ["kolm_build 2026 federated share v1", round_id, *names]
    key = derived(private, public, info)
    plain = cbor2.dumps(shares, canonical=True)
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, round_id)


def commitment(seed):
    return hashlib.sha256(b"kolm_build 2026 federated own mask v1\n" + seed).digest()


def round_id(record):
    context = "kolm_build 2026 federated round v1"
    return "b3:" + blake3(record, derive_key_context=context).hexdigest()


def noise_variance(plan):
    bound = math.floor(Fraction(plan["clip"]) * 2 ** plan["fraction_bits"])
    return math.ceil((Fraction(plan["noise_multiplier"]) * bound) ** 2 / plan["threshold"])


def sealed(record, site, vector, pairs, *, own, noise):
    names = [one["name"] for one in record["sites"]]
    weight = 1
    if record["plan"]["weight"] == "rows":
        weight = record["sites"][names.index(site)]["rows"]
    made = [weight * value for value in vector]
    if noise:
        flips = Flips(noise)
        variance = noise_variance(record["plan"])
        made = [value + flips.gaussian(variance) for value in made]
    signs = {own: 1} | {seed: 1 if site < peer else -1 for peer, seed in pairs.items()}
    for seed, sign in signs.items():
        data = stream(seed, "mask", 8 * len(made))
        words = [int.from_bytes(data[8 * at : 8 * at + 8], "little") for at in range(len(made))]
        made = [value + sign * word for value, word in zip(made, words, strict=True)]
    return [value % 2**64 for value in made]


def epsilon(rounds, noise, delta, rate, orders):
    best = math.inf
    for a in orders:
        if rate == 1:
            divergence = a / (2 * noise**2)
        else:
            logs = [
                math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
                + (a - k) * math.log1p(-rate) + k * math.log(rate)
                + (k * k - k) / (2 * noise**2)
                for k in range(a + 1)
            ]  # fmt: skip
            top = max(logs)
            divergence = (top + math.log(sum(math.exp(one - top) for one in logs))) / (a - 1)
        found = rounds * divergence + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        best = min(best, found)
    return best
