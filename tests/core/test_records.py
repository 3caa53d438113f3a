"""spec/cbor.md, tree.md, derivation.md: records are read back strictly from one encoding."""

from dataclasses import replace

import pytest

from kolm_build.core import cbor
from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest, RecordKind, Sha256
from kolm_build.core.environment import Distribution, Environment, parse_distribution_name
from kolm_build.core.machine import Accelerator, Machine
from kolm_build.core.name import parse_entry, parse_label
from kolm_build.core.numerics import Numerics, Platform
from kolm_build.core.realisation import Realisation, contents
from kolm_build.core.request import StepRequest
from kolm_build.core.tree import File, Folder, Link, Tree
from kolm_build.errors import InvalidRecordError, UnsupportedVersionError
from tests.core.samples import digest, environment

NATIVE = Numerics(cls="native-1", seed=7, threads=2)
PLATFORM = Platform(isa="x86_64-v4", vendor="AuthenticAMD")

DERIVATION = Derivation(
    name="train-1",
    step="sft",
    code=digest("code"),
    environment=digest("environment"),
    params=(("epochs", 2), ("learning_rate", "0.001")),
    inputs=(
        ("model", OutputInput(derivation=digest("base"), output="out")),
        ("train", ContentInput(content=digest("rows"))),
    ),
    outputs=(("adapter", None), ("trace", digest("trace"))),
    numerics=NATIVE,
    platform=PLATFORM,
)
FILE = File(b3=digest("x"), sha256=Sha256.of_blob(b"x"), size_bytes=1)
TREE = Tree.of([("a", FILE), ("b", Folder(tree=digest("t"))), ("c", Link(target="../a"))])
REALISATION = Realisation(resolved=digest("r"), output="out", content=digest("c"))
MACHINE = Machine(
    platform=PLATFORM,
    cpu="cpu",
    cores=2,
    memory_bytes=1 << 34,
    kernel="Linux 6",
    libc="glibc 2.36",
    accelerators=(Accelerator(name="a", architecture="sm_90", driver="1", memory_bytes=2),),
)
REQUEST = StepRequest(
    step="sft",
    params={"epochs": 2, "rate": "0.1"},
    inputs={"model": "/in/model"},
    outputs={"out": "/out/out"},
    scratch="/tmp/s",
    numerics=NATIVE,
    events_fd=3,
)
RECORDS = [DERIVATION, TREE, REALISATION, MACHINE, environment()]
RECORD = pytest.mark.parametrize("made", RECORDS, ids=lambda made: type(made).__name__)


def refusal(call, *args, error=InvalidRecordError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return caught.value


@RECORD
def test_a_record_is_read_back(made):
    assert type(made).from_value(cbor.decode(cbor.encode(made.to_value()))) == made


@RECORD
def test_another_version_has_an_error_of_its_own(made):
    """DRV-12."""
    value = made.to_value() | {"v": 2}
    assert refusal(type(made).from_value, value, error=UnsupportedVersionError).where == "v"


@RECORD
def test_no_key_may_be_missing_unknown_or_of_another_type(made):
    """CBOR-10."""
    for name, item in made.to_value().items():
        missing = {key: value for key, value in made.to_value().items() if key != name}
        refusal(type(made).from_value, missing)
        wrong = made.to_value() | {name: [1] if isinstance(item, dict) else {"a": b""}}
        refusal(type(made).from_value, wrong)
    assert refusal(type(made).from_value, made.to_value() | {"extra": 1}).where == "extra"


def test_a_request_is_read_back():
    assert StepRequest.decode(REQUEST.encode()) == REQUEST
    value = cbor.decode(REQUEST.encode())
    refusal(StepRequest.decode, cbor.encode(value | {"v": 2}), error=UnsupportedVersionError)
    refusal(StepRequest.decode, cbor.encode(value | {"more": 2}))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "train-2"},
        {"step": "dpo"},
        {"code": digest("edited")},
        {"environment": None},
        {"params": (("epochs", 3), ("learning_rate", "0.001"))},
        {"params": (("epochs", "2"), ("learning_rate", "0.001"))},
        {"inputs": DERIVATION.inputs[:1]},
        {"inputs": (("model", OutputInput(derivation=digest("base"), output="other")),)},
        {"outputs": (("adapter", None), ("trace", None))},
        {"numerics": replace(NATIVE, seed=8)},
        {"numerics": replace(NATIVE, threads=3)},
        {"numerics": Numerics(cls="portable-1", seed=7), "platform": None},
        {"platform": replace(PLATFORM, vendor="GenuineIntel")},
        {"platform": replace(PLATFORM, accel="sm_90")},
    ],
)
def test_every_field_of_a_derivation_is_in_its_digest(change):
    """DRV-1."""
    assert replace(DERIVATION, **change).digest != DERIVATION.digest


def test_the_fields_of_a_derivation_are_these_and_no_others():
    """DRV-2: nothing about time, priority, place or logs."""
    assert set(DERIVATION.to_value()) == {
        *("v", "name", "step", "code", "environment", "params"),
        *("inputs", "outputs", "numerics", "platform"),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Train"},
        {"name": ""},
        {"step": "a--b"},
        {"params": (("b", 1), ("a", 1))},
        {"params": (("a", 1), ("a", 1))},
        {"params": (("a", 1.5),)},
        {"params": (("a", True),)},
        {"params": (("a", None),)},
        {"inputs": (("Role", ContentInput(content=digest("x"))),)},
        {"outputs": ()},
        {"outputs": (("b", None), ("a", None))},
        {"platform": None},
        {"numerics": Numerics(cls="exact-1")},
    ],
)
def test_a_derivation_that_is_not_one_cannot_be_made(change):
    """DRV-3, DRV-4, DRV-6."""
    refusal(replace, DERIVATION, **change)


def test_an_unresolved_derivation_has_no_resolved_digest():
    assert not DERIVATION.is_resolved
    with pytest.raises(InvalidRecordError, match="not resolved"):
        _ = DERIVATION.resolved_digest
    resolved = DERIVATION.resolve({DERIVATION.needs[0]: digest("content")})
    assert resolved.is_resolved
    assert not resolved.needs


def test_a_derivation_is_fixed_when_every_output_is():
    assert not DERIVATION.is_fixed
    assert replace(DERIVATION, outputs=(("out", digest("x")),)).is_fixed


@pytest.mark.parametrize("cls", ["exact", "native-2", ""])
def test_a_numerics_class_is_one_of_three(cls):
    refusal(Numerics, cls=cls)


@pytest.mark.parametrize("bounds", [{"seed": -1}, {"seed": 1 << 63}, {"threads": 0}])
def test_numerics_stay_in_their_bounds(bounds):
    refusal(Numerics, cls="native-1", **bounds)


def test_threads_are_no_part_of_portable_numerics():
    """NUM-100."""
    assert "native-1" in refusal(Numerics, cls="portable-1", threads=2).advice


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a\0", "\x7f", "e\u0301", "x" * 256]
)
def test_a_name_no_folder_may_hold_is_refused(name):
    """TREE-2."""
    refusal(parse_entry, name)
    refusal(Tree.of, [(name, FILE)])


def test_a_name_of_255_bytes_is_a_name():
    """TREE-2."""
    assert parse_entry("é" * 127) == "é" * 127
    refusal(parse_entry, "é" * 128)
    refusal(parse_entry, "\ud800")


def test_entries_are_sorted_by_their_bytes():
    """TREE-1."""
    names = ["z", "Z1", "é", "a", "a.b", "a-b", "\U00010000", "\uffee"]
    made = Tree.of([(name, FILE) for name in names])
    assert [name for name, _ in made.entries] == sorted(names, key=str.encode)
    refusal(Tree, entries=(("b", FILE), ("a", FILE)))
    refusal(Tree, entries=(("a", FILE), ("a", FILE)))


@pytest.mark.parametrize(("one", "other"), [("a", "A"), ("straße", "STRASSE"), ("ﬁ", "fi")])
def test_names_that_differ_in_case_alone_are_refused(one, other):
    """TREE-3."""
    refusal(Tree.of, [(one, FILE), (other, FILE)])


@pytest.mark.parametrize("target", ["", "/etc/passwd", "a/../b", "x" * 4096, "a\0b"])
def test_a_link_out_of_order_is_refused(target):
    """TREE-6."""
    refusal(Tree.of, [("link", Link(target=target))])


def test_links_may_climb_at_their_start():
    """TREE-6."""
    assert Tree.of([("link", Link(target="../../a/b"))]).get("link") == Link(target="../../a/b")


def test_a_tree_is_its_names_and_bytes():
    """TREE-4, TREE-5, TREE-7."""
    assert Tree.of(reversed(TREE.entries)) == TREE
    assert TREE.digest == Tree.decode(TREE.encode()).digest
    assert TREE.digest != Tree.of([("a", replace(FILE, executable=True))]).digest
    assert set(FILE.to_value()) == {"type", "b3", "sha256", "size", "exec"}
    assert Folder(tree=digest("t")).to_value() == {"type": "tree", "tree": digest("t").raw}


@pytest.mark.parametrize(
    "node",
    [
        {"type": "device"},
        {"type": "file", "b3": b"short", "sha256": bytes(32), "size": 1, "exec": False},
        {"type": "file", "b3": bytes(32), "sha256": bytes(32), "size": -1, "exec": False},
        {"type": "file", "b3": bytes(32), "sha256": bytes(32), "size": 1},
        {"type": "link", "target": "a", "mode": 7},
        ["file"],
    ],
)
def test_a_node_that_is_not_one_is_refused_under_its_name(node):
    error = refusal(Tree.from_value, {"v": 1, "entries": [["weights", node]]})
    assert error.where.startswith("entries[0].weights")


def test_an_entry_is_a_pair():
    refusal(Tree.from_value, {"v": 1, "entries": [["a"]]})


@pytest.mark.parametrize("text", ["a", "a-b", "a.b_c-1", "x" * 64])
def test_labels_are_lower_case_words(text):
    """DRV-3."""
    assert parse_label(text) == text


@pytest.mark.parametrize("text", ["", "A", "a b", "-a", "a-", "a--b", "a/b", "é", "x" * 65, "a\n"])
def test_what_is_no_label_is_refused(text):
    """DRV-3."""
    refusal(parse_label, text)


@pytest.mark.parametrize("kind", [Digest, Sha256])
def test_a_digest_has_one_text_of_its_own(kind):
    """DIGEST-5, DIGEST-6."""
    made = kind(bytes(range(32)))
    assert kind.parse(str(made)) == made
    assert str(made) == f"{kind.prefix}:{made.hex}"
    assert len(made.hex) == 64
    text = str(made)
    other = "sha256" if kind is Digest else "b3"
    for wrong in (
        text[:-1],
        text + "0",
        text.upper(),
        made.hex,
        f"{other}:{made.hex}",
        text + "\n",
    ):
        refusal(kind.parse, wrong)


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), "x" * 32, bytearray(32)])
def test_a_digest_has_32_bytes(raw):
    """DIGEST-4."""
    refusal(Digest, raw)


def test_digests_of_two_algorithms_never_are_equal():
    """DIGEST-7."""
    assert Digest(bytes(32)) != Sha256(bytes(32))


def test_a_record_of_one_kind_does_not_pass_for_another():
    """DIGEST-2, DIGEST-3."""
    digests = {Digest.of_record(b"\xa0", kind) for kind in RecordKind} | {Digest.of_blob(b"\xa0")}
    assert len(digests) == len(RecordKind) + 1


def test_an_environment_is_sorted_by_normal_names():
    """DRV-9."""
    made = environment(torch="2", blake3="1")
    assert [one.name for one in made.distributions] == ["blake3", "torch"]
    one = made.distributions[0]
    refusal(replace, made, distributions=tuple(reversed(made.distributions)))
    refusal(Environment.of, python="3.11", interpreter=digest("p"), distributions=[one, one])
    refusal(Distribution, name="Huggingface_Hub", version="1", content=digest("x"))
    refusal(Distribution, name="a", version="one two", content=digest("x"))
    refusal(replace, made, python="")
    assert parse_distribution_name("Huggingface_Hub") == "huggingface-hub"
    refusal(parse_distribution_name, "-")


def test_an_environment_has_one_digest():
    made = environment()
    assert Environment.decode(made.encode()) == made
    assert made.digest != replace(made, python="3.11.8").digest
    assert made.digest != environment(torch="2.13.1", blake3="1.0.11").digest


def test_claims_are_counted_by_content():
    """DRV-10, DRV-11."""
    other = replace(REALISATION, content=digest("d"))
    assert contents([]) == ()
    assert contents([REALISATION, REALISATION]) == (digest("c"),)
    assert contents([other, REALISATION]) == tuple(sorted([digest("c"), digest("d")]))
    assert set(REALISATION.to_value()) == {"v", "resolved", "output", "content"}
    refusal(replace, REALISATION, output="Out")


def test_a_machine_has_bounds():
    refusal(replace, MACHINE, cores=0)
    assert MACHINE.digest != replace(MACHINE, kernel="Linux 7").digest
    assert str(PLATFORM) == "x86_64-v4/AuthenticAMD/none"
