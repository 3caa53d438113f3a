"""Verifying: every byte matters, and only trusted keys count (spec/verify.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kolm_build.attest.envelope import Envelope
from kolm_build.attest.sign import sign_artifact
from kolm_build.attest.trust import TrustPolicy
from kolm_build.attest.verify import verify_artifact
from kolm_build.core import strict_json
from kolm_build.core.statement import Statement
from kolm_build.errors import (
    ContainerError,
    ContentError,
    ManifestError,
    SignatureError,
    UnsupportedArtifactError,
    UntrustedError,
    UsageError,
    VerificationError,
)
from tests.artifact import making
from tests.artifact.zips import Entry
from tests.artifact.zips import write as write_freely
from tests.attest.helping import CI, entry, forge, key, members, trust, write

ROOT = Path(__file__).parents[2]
PARTS = 8
CODES = {
    *("trust.container", "trust.manifest", "trust.content", "trust.signature"),
    *("trust.evidence", "trust.unsupported", "trust.untrusted"),
}


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """The smallest artifact there can be, signed; its bytes are changed and put back."""
    folder = tmp_path_factory.mktemp("smallest")
    path = making.make(folder, making.smallest)
    path.chmod(0o644)
    sign_artifact(path, path, key=key(1))
    return path


def test_a_good_artifact_is_trusted(signed):
    """VER-5, EVI-1."""
    report = verify_artifact(signed, trust=trust(CI))
    assert report.trusted
    assert [(each.signer, each.counts) for each in report.signatures] == [("ci", True)]
    assert report.manifest.kscore["k"] == "1.0000"
    assert json.loads(json.dumps(report.to_value())) == report.to_value()


def code_of(path: Path, policy: TrustPolicy) -> str:
    """The code of the error that verifying ends with; empty where it ends well."""
    try:
        verify_artifact(path, trust=policy)
    except VerificationError as error:
        return error.code
    return ""


@pytest.mark.parametrize("part", range(PARTS))
def test_every_changed_byte_is_refused(smallest, part):
    """VER-2, VER-3: all positions, each with a typed error."""
    policy, good = trust(CI), smallest.read_bytes()
    fd = os.open(smallest, os.O_RDWR)
    accepted = []
    try:
        for at in range(part, len(good), PARTS):
            os.pwrite(fd, bytes([good[at] ^ 1 << at // PARTS % 8]), at)
            if code_of(smallest, policy) not in CODES:
                accepted.append(at)
            os.pwrite(fd, good[at : at + 1], at)
    finally:
        os.close(fd)
    assert accepted == []
    verify_artifact(smallest, trust=policy)


def test_every_changed_byte_of_a_signature_is_refused(smallest, tmp_path):
    """VER-3, TRUST-5: with a right CRC-32, so that the attestation itself is looked at."""
    files = members(smallest)
    (name,) = (path for path in files if path.startswith("attestations/"))
    good = files[name]
    for at in range(0, len(good), 5):
        changed = good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]
        path = write(tmp_path / "x.kolm", files | {name: changed})
        assert code_of(path, trust(CI)) in {"trust.signature", "trust.untrusted"}


@pytest.mark.parametrize("cut", [1, 22, 64, 1000])
def test_a_truncated_file_is_refused(signed, tmp_path, cut):
    path = tmp_path / "x.kolm"
    path.write_bytes(signed.read_bytes()[:-cut])
    with pytest.raises(ContainerError):
        verify_artifact(path, trust=None)


@pytest.mark.parametrize("extra", ["model/extra.json", "eval/a.txt", ".git/x", "zz", "model.py"])
def test_an_added_member_is_refused(signed, tmp_path, extra):
    """EVI-1; case 11 of the threat model."""
    path = write(tmp_path / "x.kolm", members(signed) | {extra: b"x"})
    with pytest.raises(ManifestError, match="not listed"):
        verify_artifact(path, trust=trust(CI))


def test_every_removed_member_is_refused(signed, tmp_path):
    """EVI-1; case 11; a stripped signature is untrusted, case 19."""
    files = members(signed)
    for name in files:
        path = write(tmp_path / "x.kolm", {key: files[key] for key in files if key != name})
        with pytest.raises(VerificationError) as caught:
            verify_artifact(path, trust=trust(CI))
        stripped = name.startswith("attestations/")
        assert caught.type is (UntrustedError if stripped else ManifestError), name


def test_renamed_and_swapped_members_are_refused(signed, tmp_path):
    """EVI-1; case 12."""
    files = members(signed)
    data = files.pop("model/config.json")
    path = write(tmp_path / "x.kolm", files | {"model/confih.json": data})
    with pytest.raises(ManifestError):
        verify_artifact(path, trust=trust(CI))
    one, other = "eval/summary.json", "eval/base-summary.json"
    assert len(files[one]) == len(files[other])
    swapped = members(signed) | {one: files[other], other: files[one]}
    with pytest.raises(ManifestError, match="disagree"):
        verify_artifact(write(path, swapped), trust=trust(CI))


def test_reordered_and_duplicated_members_are_refused(signed, tmp_path):
    """ZIP-1, ZIP-7; case 2."""
    entries = [Entry(name.encode(), data) for name, data in members(signed).items()]
    path = tmp_path / "x.kolm"
    path.write_bytes(write_freely(entries))
    verify_artifact(path, trust=trust(CI))
    for changed in (
        [entries[0], entries[2], entries[1], *entries[3:]],
        [*entries[:3], entries[2], *entries[3:]],
        entries[1:] + entries[:1],
    ):
        path.write_bytes(write_freely(changed))
        with pytest.raises(ContainerError):
            verify_artifact(path, trust=trust(CI))


def test_a_member_with_other_bytes_of_one_crc_is_refused(signed, tmp_path):
    """EVI-1: CRC-32 and size may be made to fit; SHA-256 may not."""
    files = members(signed)
    name = "model/config.json"
    entries = [
        Entry(path.encode(), data)
        if path != name
        else Entry(
            path.encode(),
            data.replace(b"llama", b"lmlam"),
            local={"crc": entry(path, data)["crc32"]},  # type: ignore[dict-item]
            central={"crc": entry(path, data)["crc32"]},  # type: ignore[dict-item]
        )
        for path, data in files.items()
    ]
    path = tmp_path / "x.kolm"
    path.write_bytes(write_freely(entries))
    with pytest.raises(ContentError):
        verify_artifact(path, trust=trust(CI))


def manifest_with(signed: Path, dest: Path, old: bytes, new: bytes) -> Path:
    files = members(signed)
    assert old in files["manifest.json"]
    return write(dest, files | {"manifest.json": files["manifest.json"].replace(old, new, 1)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"format"', b' {"format"'),
        (b'{"format"', b'\xef\xbb\xbf{"format"'),
        (b'{"format"', b'{"gate":"passed","format"'),
        (b'{"format"', b'{"author":"me","format"'),
        (b'"gate":"passed"', b'"gate":"failed"'),
        (b'"gate":"passed"', b'"gate":NaN'),
        (b'"gate":"passed",', b""),
        (b'"size":', b'"size":1.0,"x":'),
        (b'"size":', b'"size":0'),
        (b'"size":', b'"size":true,"x":'),
        (b'"sha256":"sha256:', b'"sha256":"b3:'),
        (b'"sha256":"sha256:', b'"sha256":"'),
        (b'"sha256":"sha256:', b'"sha256":"SHA256:'),
        (b'"b3":"b3:', b'"b3":"sha256:'),
        (b'"weights_id":"b3:', b'"weights_id":"sha256:'),
        (b'"path":"eval/', b'"path":"../eval/'),
        (b'"path":"eval/', b'"path":"attestations/'),
    ],
)
def test_a_manifest_that_is_not_strict_is_refused(signed, tmp_path, old, new):
    """ART-1, ART-2; cases 13, 15 and 17."""
    path = manifest_with(signed, tmp_path / "x.kolm", old, new)
    with pytest.raises(ManifestError):
        verify_artifact(path, trust=trust(CI))


def test_a_manifest_of_another_format_is_unsupported_not_bad(signed, tmp_path):
    """ART-5; case 62: its own code and exit status."""
    path = manifest_with(signed, tmp_path / "x.kolm", b"kolm-artifact/1", b"kolm-artifact/9")
    with pytest.raises(UnsupportedArtifactError) as caught:
        verify_artifact(path, trust=trust(CI))
    assert caught.value.exit != VerificationError.exit


def test_without_trust_nothing_is_trusted(signed, unsigned):
    """VER-5."""
    report = verify_artifact(signed, trust=None)
    assert not report.trusted
    assert [(each.signer, each.counts) for each in report.signatures] == [(None, False)]
    assert not verify_artifact(unsigned, trust=None).trusted


def test_threads_hash_in_pieces_and_set_nothing_of_the_interpreter(signed, tmp_path, monkeypatch):
    """Members large enough for threads, of more than one piece each, are checked no less."""
    monkeypatch.setattr("kolm_build.attest.container.PIECE_BYTES", 16)
    monkeypatch.setattr("kolm_build.attest.container.HASHED_BYTES", 24)
    interval_s = sys.getswitchinterval()
    verify_artifact(signed, trust=trust(CI))
    path = "model/model.safetensors"
    weights, changed = members(signed)[path], tmp_path / "changed.kolm"
    changed.write_bytes(signed.read_bytes().replace(weights, weights[:-1] + b"?"))
    with pytest.raises(ContentError) as caught:
        verify_artifact(changed, trust=trust(CI))
    assert caught.value.file == path
    assert sys.getswitchinterval() == interval_s


def test_an_unsigned_artifact_is_untrusted(unsigned):
    """TRUST-4; case 19."""
    with pytest.raises(UntrustedError) as caught:
        verify_artifact(unsigned, trust=trust(CI))
    assert caught.value.actual == "not signed"


def test_a_signature_by_a_stranger_does_not_count(unsigned, tmp_path):
    """TRUST-1, TRUST-5; case 21: a key that comes with the file proves nothing."""
    path = tmp_path / "x.kolm"
    sign_artifact(unsigned, path, key=key(9))
    with pytest.raises(UntrustedError) as caught:
        verify_artifact(path, trust=trust(CI))
    assert key(9).public.keyid[:16] in str(caught.value.actual)


def test_a_key_inside_the_file_is_not_looked_at(signed, tmp_path):
    """TRUST-1; case 21: neither as a member nor as a field of the envelope."""
    files = members(signed)
    public = key(9).public.pem()
    path = write(tmp_path / "x.kolm", files | {"attestations/key.pem": public})
    with pytest.raises(SignatureError):
        verify_artifact(path, trust=trust(CI))
    (name,) = (path for path in files if path.startswith("attestations/"))
    value = json.loads(files[name])
    value["signatures"][0]["cert"] = public.decode()
    path = write(tmp_path / "x.kolm", files | {name: strict_json.dumps(value)})
    with pytest.raises(SignatureError):
        verify_artifact(path, trust=trust(CI))


def swap_attestation(signed: Path, dest: Path, change) -> Path:
    """The artifact with its attestation changed by `change`, envelope to (name, envelope)."""
    files = members(signed)
    (name,) = (path for path in files if path.startswith("attestations/"))
    envelope = Envelope.decode(files.pop(name))
    new_name, new = change(name, envelope)
    return write(dest, files | {new_name: new})


def signed_by(number: int, kind: str, payload: bytes, named: int | None = None) -> bytes:
    """An envelope over `payload` with key `number`'s signature, under the keyid of `named`."""
    from kolm_build.attest.envelope import Signature, pae

    keyid = key(named or number).public.keyid
    signature = Signature(keyid=keyid, sig=key(number).sign(pae(kind, payload)))
    return Envelope(payload_type=kind, payload=payload, signatures=(signature,)).encode()


def test_a_signature_by_a_stranger_under_a_trusted_keyid_is_refused(signed, tmp_path):
    """TRUST-5; case 21."""

    def change(name, envelope):
        return name, signed_by(9, envelope.payload_type, envelope.payload, named=1)

    path = swap_attestation(signed, tmp_path / "x.kolm", change)
    with pytest.raises(SignatureError, match="forged"):
        verify_artifact(path, trust=trust(CI))


def test_another_payload_type_is_refused(signed, tmp_path):
    """ATT-2; case 25."""

    def change(name, envelope):
        return name, signed_by(1, "application/json", envelope.payload)

    with pytest.raises(SignatureError):
        verify_artifact(swap_attestation(signed, tmp_path / "x.kolm", change), trust=trust(CI))


@pytest.mark.parametrize(
    "change",
    [
        {"predicateType": "urn:kolm:predicate:approved:1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"predicate": {}},
        {"predicate": {"artifact": "kolm-artifact/1", "score": "1.0"}},
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"subject": []},
    ],
)
def test_another_statement_is_refused(signed, tmp_path, change):
    """ATT-2; case 25: a statement of one kind never passes for another."""

    def swap(name, envelope):
        payload = strict_json.dumps(json.loads(envelope.payload) | change)
        return name, signed_by(1, envelope.payload_type, payload)

    with pytest.raises(SignatureError):
        verify_artifact(swap_attestation(signed, tmp_path / "x.kolm", swap), trust=trust(CI))


@pytest.mark.parametrize("part", ["name", "sha256", "blake3"])
def test_a_statement_about_another_artifact_is_refused(signed, tmp_path, part):
    """ATT-2; case 26: mix and match."""

    def swap(name, envelope):
        value = json.loads(envelope.payload)
        subject = value["subject"][0]
        if part == "name":
            subject["name"] = "other"
        else:
            subject["digest"][part] = "0" * 64
        payload = Statement.from_value(value).encode()
        return name, signed_by(1, envelope.payload_type, payload)

    path = swap_attestation(signed, tmp_path / "x.kolm", swap)
    with pytest.raises(SignatureError, match="something else"):
        verify_artifact(path, trust=trust(CI))


@pytest.mark.parametrize("name", ["built.0000000000000000.dsse.json", "x.dsse.json", "approved.K"])
def test_a_misnamed_attestation_is_refused(signed, tmp_path, name):
    """ATT-1."""
    wanted = name.replace("K", key(1).public.keyid[:16] + ".dsse.json")

    def swap(_name, envelope):
        return f"attestations/{wanted}", envelope.encode()

    with pytest.raises(SignatureError):
        verify_artifact(swap_attestation(signed, tmp_path / "x.kolm", swap), trust=trust(CI))


def test_one_key_cannot_sign_twice(signed, tmp_path):
    """ATT-1, TRUST-4; case 24: the file's name is the key's, so there is no second place."""
    files = members(signed)
    (name,) = (path for path in files if path.startswith("attestations/"))
    path = write(tmp_path / "x.kolm", files | {name.replace("built", "built2"): files[name]})
    policy = trust(CI, ("other", "builder", 2), builder=2)
    with pytest.raises(SignatureError):
        verify_artifact(path, trust=policy)
    with pytest.raises(UntrustedError):
        verify_artifact(signed, trust=policy)


def test_two_keys_of_one_principal_count_once(unsigned, tmp_path):
    """TRUST-4."""
    from dataclasses import replace

    path = tmp_path / "x.kolm"
    sign_artifact(unsigned, path, key=key(1))
    sign_artifact(path, path, key=key(2))
    policy = trust(CI, ("other", "builder", 3), builder=2)
    both = replace(policy.principals[0], keys=(key(1).public, key(2).public))
    policy = replace(policy, principals=(both, policy.principals[1]))
    with pytest.raises(UntrustedError):
        verify_artifact(path, trust=policy)
    sign_artifact(path, path, key=key(3))
    assert verify_artifact(path, trust=policy).trusted


def test_a_builder_cannot_stand_in_for_an_approver(unsigned, tmp_path):
    """TRUST-3; case 28: role separation."""
    path = tmp_path / "x.kolm"
    sign_artifact(unsigned, path, key=key(1))
    sign_artifact(path, path, key=key(1), role="approver")
    policy = trust(CI, ("anna", "approver", 2), builder=1, approver=1)
    with pytest.raises(UntrustedError, match="approver"):
        verify_artifact(path, trust=policy)
    sign_artifact(path, path, key=key(2), role="approver")
    assert verify_artifact(path, trust=policy).trusted


def test_a_foreign_signature_beside_a_trusted_one_is_listed_and_does_not_count(signed, tmp_path):
    """TRUST-5."""
    path = tmp_path / "x.kolm"
    sign_artifact(signed, path, key=key(9))
    report = verify_artifact(path, trust=trust(CI))
    assert {(each.signer, each.counts) for each in report.signatures} == {
        ("ci", True),
        (None, False),
    }


def test_too_many_attestations_are_refused(signed, tmp_path):
    files = members(signed) | {f"attestations/{number:04}": b"" for number in range(65)}
    with pytest.raises(SignatureError, match="too many"):
        verify_artifact(write(tmp_path / "x.kolm", files), trust=None)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UsageError):
        verify_artifact(tmp_path / "none.kolm", trust=None)
    with pytest.raises(ContainerError):
        verify_artifact(tmp_path, trust=None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContainerError):
        verify_artifact(tmp_path / "pipe", trust=None)


def test_a_container_without_a_manifest_is_refused(tmp_path):
    for files in ({}, {"a": b""}):
        with pytest.raises(ManifestError):
            verify_artifact(write(tmp_path / "x.kolm", files), trust=None)


ALONE = """
import sys
allowed = set(sys.stdlib_module_names) | {"kolm_build", "cryptography", "_cffi_backend", "cffi"}

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"the verifier imports {name}")

sys.meta_path.insert(0, Only())
import socket

def no_network(*_args, **_kwargs):
    raise RuntimeError("the verifier opens a socket")

socket.socket = no_network
from pathlib import Path
from kolm_build.attest.trust import parse_trust
from kolm_build.attest.verify import verify_artifact
policy = parse_trust(Path(sys.argv[2]).read_bytes(), sys.argv[2])
report = verify_artifact(Path(sys.argv[1]), trust=policy)
print(report.artifact_id)
"""


@pytest.mark.parametrize("wrapper", [[], ["unshare", "-rn"]], ids=["here", "no network"])
@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["plain", "optimised"])
def test_the_verifier_needs_only_the_standard_library_and_cryptography(
    signed, tmp_path, wrapper, flags
):
    """VER-1, VER-2; cases 63 and 64: no asserts, no sockets, no other distribution."""
    if wrapper and subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces")
    trust_file = tmp_path / "trust.toml"
    trust_file.write_text(
        'version = 1\n[threshold]\nbuilder = 1\n[[principal]]\nname = "ci"\n'
        f'roles = ["builder"]\nkeys = ["{key(1).public}"]\n'
    )
    command = [*wrapper, sys.executable, *flags, "-c", ALONE, str(signed), str(trust_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == verify_artifact(signed, trust=None).artifact_id


def test_a_bad_artifact_is_refused_without_asserts_too(signed, tmp_path):
    """Case 63."""
    path = tmp_path / "x.kolm"
    path.write_bytes(signed.read_bytes().replace(b"llama", b"lmlam"))
    code = (
        "import sys; from pathlib import Path; "
        "from kolm_build.attest.verify import verify_artifact; "
        "verify_artifact(Path(sys.argv[1]), trust=None)"
    )
    command = [sys.executable, "-O", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "ContentError" in done.stderr


MEMORY = """
import sys, resource
from pathlib import Path
from kolm_build.attest.container import Container, Hashing
with Container.open(Path(sys.argv[1])) as container:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Hashing(container, container.entries, keep=lambda path: 0) as hashing:
        hashing.result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_artifact_is_hashed_in_bounded_memory(unsigned, tmp_path):
    """VER-4; case 65."""
    size = 100 << 20

    def grow(files):
        files["model/big.safetensors"] = bytes(size)

    path = forge(unsigned, tmp_path / "big.kolm", grow)
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) * 1024 < size // 4
