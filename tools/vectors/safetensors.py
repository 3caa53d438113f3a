"""Safetensors: canonical headers, headers that are refused, weights records."""

from kolm_build.core import safetensors
from kolm_build.core.digest import Digest, RecordKind

_SETS: list[tuple[list[safetensors.Tensor], dict[str, str]]] = [
    ([], {}),
    ([("a", "F32", (2, 3))], {"format": "pt"}),
    ([("b", "BF16", (2,)), ("a", "F32", ()), ("c/d-e", "I64", (0, 7))], {}),
    ([(f"layer.{n}.weight", "F16", (n, 2)) for n in range(12)], {"é": 'a"b\n', "": "z"}),
]
_REFUSED: dict[str, str] = {
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],'
    '"data_offsets":[0,8]}}': "a repeated tensor",
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}': "an unknown field",
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8.0]}}': "a float",
    '{"../a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}': "a name that climbs",
    ' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}': "a space in front",
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}\n': "a newline behind",
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}': "data left over",
    '{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}': "an unknown dtype",
    '{"__metadata__":{"a":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}': "no text",
}
_WEIGHTS = [("b", "F32", (2,), bytes(32)), ("a", "BF16", (1, 3), bytes(range(32)))]


def vectors() -> dict[str, object]:
    return {
        "headers": [
            {
                "tensors": tensors,
                "metadata": metadata,
                "start": safetensors.encode_header(tensors, metadata).hex(),
            }
            for tensors, metadata in _SETS
        ],
        "refused_before_8_bytes": _REFUSED,
        "weights": {
            "tensors": [[name, dtype, shape, b3.hex()] for name, dtype, shape, b3 in _WEIGHTS],
            "record": safetensors.weights_record(_WEIGHTS).hex(),
            "id": str(Digest.of_record(safetensors.weights_record(_WEIGHTS), RecordKind.WEIGHTS)),
        },
    }
