"""Matrix products give the bits of NUM-10 whatever lies around them."""

from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.numerics.testing_library import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Library,
    Matrix,
    Product,
    matrix,
)

ELEMENTS = (FLOAT32, BFLOAT16, FLOAT16)
LAYOUTS = ("rows", "columns", "scattered")
SHAPES = [  # one of everything, tiles and chunks and tasks and their edges
    (1, 1, 1),
    (3, 5, 7),
    (14, 32, 256),
    (15, 33, 257),
    (1, 100, 700),
    (2, 65, 513),
    (5, 1, 300),
    (40, 70, 1030),
    (17, 16, 2000),
    (100, 9, 300),
    (300, 40, 260),
    (270, 1100, 20),
    (4, 1060, 64),
    (1100, 7, 300),
    (1024, 16, 260),  # rows a power of two apart
    (16, 1040, 520),
]


def values(rng: np.random.Generator, rows: int, columns: int, element: int) -> np.ndarray:
    """Numbers of mixed size and sign, some zero, in the element's format."""
    x = rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-8, 8, (rows, columns))
    x[rng.random((rows, columns)) < 0.05] = 0.0
    x = x.astype(np.float32)
    if element == BFLOAT16:
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16).view(np.uint16) if element == FLOAT16 else x


def laid_out(x: np.ndarray, layout: str, element: int) -> Matrix:
    """The same matrix in another order in memory."""
    if layout == "columns":
        return matrix(np.asfortranarray(x), element=element)
    if layout == "scattered":
        wide = np.zeros((2 * x.shape[0], 3 * x.shape[1]), x.dtype)
        wide[::2, ::3] = x
        return matrix(wide[::2, ::3], element=element)
    return matrix(np.ascontiguousarray(x), element=element)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.array_equal(x.view(np.uint32), y.view(np.uint32))


def every_way(library: Library, a: Matrix, b: Matrix, shape: tuple[int, int, int]):
    """The product on every instruction set and number of threads, with b as it lies and packed."""
    m, n, _ = shape
    task = Product(a, b, shape)
    for isa, threads in product(library.isas(), (1, 2, 3)):
        wide = np.full((m, n + 3), 7.0, np.float32)
        yield f"{isa}, {threads} threads", library.gemm(isa, threads, task, wide[:, :n])
        assert (wide[:, n:] == 7.0).all(), "the columns past the result are not touched"
        packed = library.pack(isa, threads, task)
        out = np.full((m, n), np.nan, np.float32)
        yield (
            f"{isa}, {threads} threads, packed",
            library.gemm_packed(isa, threads, task, packed, out=out),
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_the_chunked_sum_of_the_specification(
    library: Library, shape: tuple[int, int, int]
) -> None:
    """NUM-10 and NUM-4: layouts, formats, instruction sets, threads and packing change no bit."""
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    for index, (left, right) in enumerate(product(LAYOUTS, LAYOUTS)):
        formats = ELEMENTS[index % 3], ELEMENTS[(index // 3 + index) % 3]
        a = laid_out(values(rng, m, k, formats[0]), left, formats[0])
        b = laid_out(values(rng, k, n, formats[1]), right, formats[1])
        expected = library.gemm_reference(Product(a, b, shape))
        for how, got in every_way(library, a, b, shape):
            assert same_bits(got, expected), (how, left, right, formats)


def test_the_reference_agrees_with_exact_rational_arithmetic(library: Library) -> None:
    """NUM-10: one rounding per fma, chunk sums added, checked without any floating point unit."""
    from fractions import Fraction

    def rounded(x: Fraction) -> np.float32:
        return np.float32(float(x)) if x == Fraction(float(x)) else nearest(x)

    def nearest(x: Fraction) -> np.float32:
        near = np.float32(float(x))
        around = [
            near,
            np.nextafter(near, np.float32(-np.inf)),
            np.nextafter(near, np.float32("inf")),
        ]
        even = sorted(
            around, key=lambda y: (abs(Fraction(float(y)) - x), int(y.view(np.uint32)) & 1)
        )
        return even[0]

    rng = np.random.default_rng(5)
    k = 600
    a, b = (values(rng, *s, FLOAT32) for s in ((2, k), (k, 2)))
    got = library.gemm_reference(Product(matrix(a), matrix(b), (2, 2, k)))
    for i, j in product(range(2), range(2)):
        t = np.float32(0.0)
        for start in range(0, k, 256):
            s = np.float32(0.0)
            for x, y in zip(a[i, start : start + 256], b[start : start + 256, j], strict=True):
                s = rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(s)))
            t = rounded(Fraction(float(t)) + Fraction(float(s)))
        assert same_bits(np.array([t]), got[i, j : j + 1])


def test_a_chunk_has_256_products(library: Library) -> None:
    """NUM-10: 2^24 at depth 0 swallows ones within its chunk and not those of the next."""
    a = np.ones((1, 512), np.float32)
    a[0, 0] = 2.0**24
    b = np.ones((512, 1), np.float32)
    for how, got in every_way(library, matrix(a), matrix(b), (1, 1, 512)):
        assert got[0, 0] == 2.0**24 + 256, how


@pytest.mark.parametrize(
    "shape", [(5, 40, 300), (16, 300, 20), (40, 5, 300), (300, 16, 20)], ids=str
)
def test_operands_whose_rows_overlap_are_read_as_they_lie(
    library: Library, shape: tuple[int, int, int]
) -> None:
    """NUM-11: both strides may be one, as those of a sliding window are."""
    m, n, k = shape
    numbers = values(np.random.default_rng(7), 1, m + n + k, FLOAT32)[0]
    windows = np.lib.stride_tricks.sliding_window_view
    a, b = matrix(windows(numbers, k)[:m]), matrix(windows(numbers[m:], n)[:k])
    assert a.strides == b.strides == (1, 1)
    expected = library.gemm_reference(Product(a, b, shape))
    for how, got in every_way(library, a, b, shape):
        assert same_bits(got, expected), how


def test_a_product_of_depth_nothing_is_plus_zero(library: Library) -> None:
    a, b = np.empty((3, 0), np.float32), np.empty((0, 5), np.float32)
    for how, got in every_way(library, matrix(a), matrix(b), (3, 5, 0)):
        assert same_bits(got, np.zeros((3, 5), np.float32)), how


def test_a_result_is_never_minus_zero(library: Library) -> None:
    """NUM-10: t starts from +0, so what underflows to -0 becomes +0."""
    a, b = np.full((1, 1), -1e-30, np.float32), np.full((1, 40), 1e-30, np.float32)
    for how, got in every_way(library, matrix(a), matrix(b), (1, 40, 1)):
        assert same_bits(got, np.zeros((1, 40), np.float32)), how


def test_a_nan_of_a_product_is_the_canonical_one(library: Library) -> None:
    """NUM-5: payloads and signs of NaN are a machine's own and are not passed on."""
    a = np.ones((16, 300), np.float32)
    a[3, 7] = np.array([0xFFC12345], np.uint32).view(np.float32)[0]
    a[5, 2] = np.inf
    b = np.ones((300, 40), np.float32)
    b[2, 9] = 0.0
    for how, got in every_way(library, matrix(a), matrix(b), (16, 40, 300)):
        assert (got[3].view(np.uint32) == 0x7FC00000).all(), how
        assert got[5, 9].view(np.uint32) == 0x7FC00000, how


def test_subnormal_numbers_are_kept(library: Library) -> None:
    """NUM-1 and NUM-4: nothing is flushed to zero, in no format."""
    a = np.full((15, 2), 2.0**-149, np.float32)
    ones = np.ones((2, 33), np.float32)
    half = np.full((15, 2), 1, np.uint16)  # the least binary16 and bfloat16 numbers
    for how, got in every_way(library, matrix(a), matrix(ones), (15, 33, 2)):
        assert (got == np.float32(2.0**-148)).all(), how
    for element, least in ((FLOAT16, 2.0**-24), (BFLOAT16, 2.0**-133)):
        for how, got in every_way(
            library, matrix(half, element=element), matrix(ones), (15, 33, 2)
        ):
            assert (got == np.float32(2 * least)).all(), how


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_element_depends_on_its_row_and_column_alone(
    library: Library, data: st.DataObject
) -> None:
    """Any part of a product, computed in any way, has the bits of the whole.

    NUM-11: "An element of a product MUST depend on its row of A and its column of B alone: not
    on the other rows, strides, layout, threads or on whether B was packed before."
    """
    m, n, k = (
        data.draw(st.integers(1, most), label=name)
        for name, most in zip("mnk", (300, 80, 600), strict=True)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    a, b = values(rng, m, k, FLOAT32), values(rng, k, n, FLOAT32)
    isa, other = (data.draw(st.sampled_from(library.isas())) for _ in range(2))
    threads = data.draw(st.integers(1, 3), label="threads")
    everything = Product(matrix(a), matrix(b), (m, n, k))
    whole = library.gemm(isa, 1, everything, np.empty((m, n), np.float32))
    rows, columns = (
        np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for size in (m, n)
    )
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
    x = laid_out(a[rows], layouts[0], FLOAT32)
    y = laid_out(b[:, columns], layouts[1], FLOAT32)
    shape = (len(rows), len(columns), k)
    some, out = Product(x, y, shape), np.empty(shape[:2], np.float32)
    if data.draw(st.booleans(), label="packed"):
        packed = library.pack(other, threads, some)
        part = library.gemm_packed(other, threads, some, packed, out=out)
    else:
        part = library.gemm(other, threads, some, out)
    assert same_bits(part, whole[np.ix_(rows, columns)])
