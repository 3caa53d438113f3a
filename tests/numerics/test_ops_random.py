"""Random numbers on the portable kernels: spec/numerics.md, NUM-60 to NUM-65."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kolm_build.numerics import portable

pytestmark = pytest.mark.usefixtures("kernels")


def philox(seed: int, stream: int, words: int) -> list[int]:
    """Philox4x32-10 as NUM-60 writes it, word by word."""
    low32 = (1 << 32) - 1
    out: list[int] = []
    for block in range((words + 3) // 4):
        c = [block & low32, block >> 32, stream & low32, stream >> 32]
        k = [seed & low32, seed >> 32]
        for _ in range(10):
            first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [
                (second >> 32) ^ c[1] ^ k[0],
                second & low32,
                (first >> 32) ^ c[3] ^ k[1],
                first & low32,
            ]
            k = [(k[0] + 0x9E3779B9) & low32, (k[1] + 0xBB67AE85) & low32]
        out += c
    return out[:words]


def stream_of(seed: int) -> int:
    """The next 64 bits of PyTorch's mt19937: NumPy's is the same generator."""
    words = np.random.RandomState(seed).randint(0, 1 << 32, 2, dtype=np.uint64)
    return int(words[0]) << 32 | int(words[1])


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_uniform_numbers_are_the_streams_words():
    """spec/numerics.md, NUM-60, NUM-62, NUM-63."""
    words = philox(5, stream_of(5), 11)
    expected = [np.float32(w >> 8) * np.float32(2**-24) for w in words]
    assert torch.empty(11).uniform_(generator=generator()).tolist() == expected


def test_normal_numbers_come_from_pairs_of_words():
    """spec/numerics.md, NUM-63."""
    words = philox(5, stream_of(5), 4)
    expected = []
    for w0, w1 in zip(words[::2], words[1::2], strict=True):
        r = math.sqrt(-2 * math.log(((w0 >> 8) + 0.5) * 2**-24))
        angle = 2 * math.pi * ((w1 >> 8) * 2**-24)
        expected += [r * math.cos(angle), r * math.sin(angle)]
    drawn = torch.empty(4).normal_(generator=generator())
    assert drawn.tolist() == pytest.approx(expected, rel=1e-5)


def test_integers_are_64_bit_elements_modulo_the_bound():
    """spec/numerics.md, NUM-61, NUM-64."""
    words = philox(5, stream_of(5), 6)
    elements = [words[i] | words[i + 1] << 32 for i in (0, 2, 4)]
    drawn = torch.randint(0, 1000, (3,), generator=generator())
    assert drawn.tolist() == [element % 1000 for element in elements]
    wide = torch.empty(3, dtype=torch.int64).random_(-5, 2**62, generator=generator())
    assert wide.tolist() == [element % (2**62 + 5) - 5 for element in elements]


def test_a_permutation_orders_64_bit_elements():
    """spec/numerics.md, NUM-64."""
    words = philox(5, stream_of(5), 40)
    keys = [words[2 * i] | words[2 * i + 1] << 32 for i in range(20)]
    drawn = torch.randperm(20, generator=generator())
    assert drawn.tolist() == sorted(range(20), key=lambda i: keys[i])


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (100_003,)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: x.uniform_(-1, 2, generator=g),
        lambda x, g: x.normal_(1, 2, generator=g),
        lambda x, g: x.exponential_(3, generator=g),
        lambda x, g: x.bernoulli_(0.3, generator=g),
    ],
)
def test_strides_threads_and_instruction_sets_do_not_matter(draw, shape):
    expected = draw(torch.empty(shape), generator())
    order = list(reversed(range(len(shape))))
    other = torch.empty([shape[d] for d in order]).permute(order)
    assert torch.equal(draw(other, generator()), expected)
    for isa in portable.isas():
        portable.set_isa(isa)
        torch.set_num_threads(2)
        assert torch.equal(draw(torch.empty(shape), generator()), expected)
    reduced = draw(torch.empty(shape, dtype=torch.bfloat16), generator())
    assert torch.equal(reduced, expected.bfloat16())


def test_saving_and_restoring_the_generator_restores_the_streams():
    """spec/numerics.md, NUM-62."""
    g = generator()
    torch.rand(3, generator=g)
    state = g.get_state()
    first = torch.rand(4, generator=g), torch.randn(4, generator=g)
    g.set_state(state)
    again = torch.rand(4, generator=g), torch.randn(4, generator=g)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_default_generator_is_seeded_by_manual_seed():
    torch.manual_seed(5)
    assert torch.equal(torch.rand(9), torch.rand(9, generator=generator()))


def test_the_moments_are_those_of_the_distributions():
    n = 200_000
    g = generator()
    normal = torch.randn(n, generator=g)
    uniform = torch.rand(n, generator=g)
    exponential = torch.empty(n).exponential_(2.0, generator=g)
    kept = torch.empty(n).bernoulli_(0.3, generator=g)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(exponential.mean() - 0.5) < 0.01
    assert abs(kept.mean() - 0.3) < 0.01


def test_dropout_keeps_what_bernoulli_keeps_and_scales_it():
    """spec/numerics.md, NUM-65."""
    x = torch.linspace(-2, 2, 1001)
    torch.manual_seed(5)
    kept = torch.empty(1001).bernoulli_(0.9)
    scale = torch.tensor(1.0) / torch.tensor(0.9)
    torch.manual_seed(5)
    assert torch.equal(torch.dropout(x, 0.1, train=True), x * (kept * scale))
    torch.manual_seed(5)
    native, mask = torch.native_dropout(x, 0.1, train=True)
    assert torch.equal(native, x * (kept * scale))
    assert torch.equal(mask, kept.bool())


def test_multinomial_takes_the_largest_races():
    """spec/numerics.md, NUM-65."""
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3], [1.0, 1.0, 1.0, 0.0]])
    race = p / torch.empty(2, 4).exponential_(generator=generator())
    drawn = torch.multinomial(p, 3, generator=generator())
    assert torch.equal(drawn, race.argsort(dim=-1, descending=True, stable=True)[:, :3])
    many = torch.multinomial(p[0], 20_000, replacement=True, generator=generator())
    shares = torch.bincount(many, minlength=4) / 20_000
    assert shares[1] == 0
    assert abs(shares[2] - 0.6) < 0.02


def test_multinomial_refuses_what_is_no_distribution():
    for p in (torch.tensor([0.5, -0.1]), torch.tensor([float("nan"), 1]), torch.zeros(3)):
        with pytest.raises(RuntimeError, match=r"probability tensor|multinomial distribution"):
            torch.multinomial(p, 1)
