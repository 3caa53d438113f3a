"""Merkle roots of lists of rows."""

from kolm_build.core import merkle

_RFC = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "60616263646566676869" + "6a6b6c6d6e6f",
)


def vectors() -> dict[str, object]:
    """The leaves of Certificate Transparency's own test vectors, and rows."""
    leaves = [bytes.fromhex(leaf) for leaf in _RFC]
    rows = [f'{{"row":{index}}}'.encode() for index in range(100)]
    lists = [leaves[:count] for count in range(len(leaves) + 1)] + [rows]
    return {
        "roots": [
            {"leaves": [leaf.hex() for leaf in some], "root": merkle.root(some).hex()}
            for some in lists
        ]
    }
