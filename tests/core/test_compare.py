"""Differences between trees are found by path, reading only what differs."""

from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.compare import differences, tensor_differences
from kolm_build.core.digest import Blob, Digest
from kolm_build.core.tree import File, Folder, Link, Node, Tree


class Trees:
    """A lookup of trees that counts its reads."""

    def __init__(self) -> None:
        self.known: dict[Digest, Tree] = {}
        self.reads = 0

    def add(self, **entries: Node) -> Digest:
        tree = Tree.of(entries.items())
        self.known[tree.digest] = tree
        return tree.digest

    def __call__(self, digest: Digest) -> Tree:
        self.reads += 1
        return self.known[digest]


def file(text: str, *, executable: bool = False) -> File:
    blob = Blob.of(text.encode())
    return File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes, executable=executable)


def test_equal_trees_are_not_even_read():
    trees = Trees()
    tree = trees.add(a=file("1"))
    assert list(differences(tree, tree, trees)) == []
    assert trees.reads == 0


def test_each_kind_of_difference_is_named():
    trees = Trees()
    before = trees.add(a=file("1"), gone=file("2"), mode=file("3"), same=file("4"))
    after = trees.add(
        a=file("one"), mode=file("3", executable=True), new=Link(target="a"), same=file("4")
    )
    found = {difference.path: difference.kind for difference in differences(before, after, trees)}
    assert found == {"a": "changed", "gone": "removed", "mode": "mode", "new": "added"}


def test_only_folders_that_differ_are_read():
    trees = Trees()
    same = Folder(tree=trees.add(x=file("x")))
    before = trees.add(same=same, sub=Folder(tree=trees.add(y=file("1"))))
    after = trees.add(same=same, sub=Folder(tree=trees.add(y=file("2"))))
    assert [difference.path for difference in differences(before, after, trees)] == ["sub/y"]
    assert trees.reads == 4


names = st.text("abcd", min_size=1, max_size=2)


@given(st.dictionaries(names, st.text(max_size=2)), st.dictionaries(names, st.text(max_size=2)))
def test_trees_differ_exactly_at_the_paths_whose_files_differ(left, right):
    trees = Trees()
    before = trees.add(**{name: file(text) for name, text in left.items()})
    after = trees.add(**{name: file(text) for name, text in right.items()})
    expected = {n for n in left.keys() | right.keys() if left.get(n) != right.get(n)}
    assert {difference.path for difference in differences(before, after, trees)} == expected


def test_tensors_are_compared_by_shape_then_values():
    one, two = Digest.of_blob(b"1"), Digest.of_blob(b"2")
    before = {"a": ("F32", (2,), one), "b": ("F32", (2,), one), "c": ("F32", (2,), one)}
    after = {"b": ("F32", (2,), two), "c": ("BF16", (4,), one), "d": ("F32", (1,), one)}
    found = {difference.name: difference.kind for difference in tensor_differences(before, after)}
    assert found == {"a": "removed", "b": "values", "c": "shape", "d": "added"}
