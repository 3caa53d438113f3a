"""Weights compared tensor by tensor, against numpy where numbers matter."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.surfaces.compare import Leaf, changes_between

WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}


def leaf(tensors: dict[str, tuple[str, list[int], bytes]]) -> Leaf:
    header, data = {}, b""
    for name, (dtype, shape, payload) in tensors.items():
        end = len(data) + len(payload)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += payload
    text = json.dumps(header).encode()
    file = struct.pack("<Q", len(text)) + text + data
    return Leaf(
        identity=file.hex(), size_bytes=len(file), read=lambda at, length: file[at : at + length]
    )


def tensors_of(before: Leaf, after: Leaf) -> list[str]:
    (change,) = changes_between({"w.safetensors": before}, {"w.safetensors": after})
    return [str(tensor) for tensor in change.tensors]


def f32(*numbers: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(numbers)], struct.pack(f"<{len(numbers)}f", *numbers)


def test_equal_sides_have_no_change():
    assert list(changes_between({"a": leaf({})}, {"a": leaf({})})) == []


def test_added_removed_and_reshaped_tensors_are_named():
    before = leaf({"gone": f32(1), "shaped": f32(1, 2)})
    after = leaf({"new": f32(1), "shaped": ("F32", [2, 1], f32(1, 2)[2])})
    assert tensors_of(before, after) == [
        "gone: removed",
        "new: added",
        "shaped: F32 [2] -> F32 [2, 1]",
    ]


def test_values_are_told_by_their_first_index_and_largest_difference():
    before, after = leaf({"w": f32(1, 2, 3, 4)}), leaf({"w": f32(1, 2, 3.5, 3)})
    assert tensors_of(before, after) == ["w: values differ from element 2 on, at most 1 apart"]


def test_a_nan_is_not_hidden():
    before, after = leaf({"w": f32(1, 2)}), leaf({"w": f32(9, math.nan)})
    assert tensors_of(before, after) == ["w: values differ from element 0 on, at most nan apart"]


def test_integers_are_compared_as_bytes():
    before = leaf({"i": ("I32", [2], struct.pack("<2i", 1, 2))})
    after = leaf({"i": ("I32", [2], struct.pack("<2i", 1, 3))})
    assert tensors_of(before, after) == ["i: values differ from element 1 on"]


def test_files_that_are_no_weights_are_compared_by_path_alone():
    broken = Leaf(identity="x", size_bytes=3, read=lambda at, length: b"abc"[at : at + length])
    assert tensors_of(broken, leaf({"w": f32(1)})) == []


def test_paths_on_one_side_are_named():
    changes = changes_between({"a": leaf({})}, {"b": leaf({})})
    assert [(one.path, one.before is None, one.after is None) for one in changes] == [
        ("a", False, True),
        ("b", True, False),
    ]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@given(words=st.lists(st.tuples(st.integers(0, 0x7BFF), st.integers(0, 0x7BFF)), min_size=1))
def test_half_precision_differences_are_those_of_numpy(dtype, words):
    before, after = (np.array(side, dtype="<u2") for side in zip(*words, strict=True))
    if (before == after).all():
        return
    (told,) = tensors_of(
        leaf({"w": (dtype, [len(before)], before.tobytes())}),
        leaf({"w": (dtype, [len(after)], after.tobytes())}),
    )
    numbers = [_float(dtype, side) for side in (before, after)]
    largest = np.abs(numbers[0] - numbers[1]).max()
    first = int((before != after).argmax())
    assert told == f"w: values differ from element {first} on, at most {largest:.6g} apart"


def _float(dtype: str, words: np.ndarray) -> np.ndarray:
    if dtype == "F16":
        return words.view("<f2").astype("<f8")
    return (words.astype("<u4") << 16).view("<f4").astype("<f8")
