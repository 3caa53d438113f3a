"""Keys: text forms, files, weak ones (spec/attest.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kolm_build.attest import keys
from kolm_build.errors import InvalidRecordError, KeyFileError
from tests.attest.helping import key

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/dsse.json").read_text())
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def small_order_points() -> set[bytes]:
    """All encodings of points of order 1, 2, 4 and 8, by arithmetic on the curve."""
    order = 2**252 + 27742317777372353535851937790883648493
    y = 2
    while True:
        torsion = multiply(order, (x_of(y), y)) if x_of(y) is not None else (0, 1)
        if multiply(4, torsion) != (0, 1):
            break
        y += 1
    points = {multiply(count, torsion) for count in range(8)}
    return {
        (y + more | sign << 255).to_bytes(32, "little")
        for _, y in points
        for more in (0, P)
        for sign in (0, 1)
        if y + more < 2**255
    }


def x_of(y: int) -> int | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if (root * root - square) % P:
        root = root * pow(2, (P - 1) // 4, P) % P
    return None if (root * root - square) % P else root


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = a, b
    both = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - both, -1, P) % P


def multiply(count: int, point: tuple[int, int]) -> tuple[int, int]:
    result = (0, 1)
    while count:
        if count & 1:
            result = add(result, point)
        point = add(point, point)
        count >>= 1
    return result


def test_every_key_of_small_order_is_refused():
    """KEY-2; case 22 of the threat model."""
    weak = small_order_points()
    assert len(weak) == 14
    for raw in weak:
        with pytest.raises(InvalidRecordError, match="weak"):
            keys.PublicKey(raw)


def test_a_key_that_is_not_canonical_is_refused():
    """KEY-2."""
    for number in range(P, 2**255):
        with pytest.raises(InvalidRecordError):
            keys.PublicKey(number.to_bytes(32, "little"))
    for text in VECTORS["weak_keys"]:
        with pytest.raises(InvalidRecordError):
            keys.PublicKey(bytes.fromhex(text))


def test_the_text_form_and_the_keyid_are_those_of_the_vectors():
    """KEY-1."""
    for vector in VECTORS["signed"]:
        public = keys.PublicKey.parse(vector["public"])
        spki = bytes.fromhex("302a300506032b6570032100") + bytes.fromhex(vector["public"][8:])
        assert public.keyid == vector["keyid"] == hashlib.sha256(spki).hexdigest()
        assert str(public) == vector["public"]


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:" + "A" * 64, "rsa:" + "0" * 64, "0" * 64]
)
def test_another_text_is_no_key(text):
    """KEY-1; case 17: upper case, missing prefix."""
    with pytest.raises(InvalidRecordError):
        keys.PublicKey.parse(text)


def test_a_key_reads_back_with_its_passphrase_only(tmp_path):
    """KEY-3."""
    path = tmp_path / "key.pem"
    public = keys.create(path, passphrase=b"correct horse")
    private = keys.load(path, passphrase=b"correct horse")
    assert private.public == public
    assert public.verifies(private.sign(b"text"), b"text")
    for wrong in (b"wrong", b"", None):
        with pytest.raises(KeyFileError):
            keys.load(path, passphrase=wrong)
    assert b"ENCRYPTED" in path.read_bytes()


def test_a_key_in_the_clear_must_be_asked_for(tmp_path):
    """KEY-3."""
    path = tmp_path / "key.pem"
    for empty in (None, b""):
        with pytest.raises(KeyFileError, match="passphrase"):
            keys.create(path, passphrase=empty)
    assert not path.exists()
    public = keys.create(path, passphrase=None, unencrypted=True)
    assert keys.load(path, passphrase=None).public == public
    with pytest.raises(KeyFileError, match="not encrypted"):
        keys.load(path, passphrase=b"x")


def test_a_key_file_is_private_and_never_overwritten(tmp_path):
    """KEY-4."""
    path = tmp_path / "key.pem"
    before = os.umask(0)
    try:
        keys.create(path, passphrase=None, unencrypted=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    with pytest.raises(KeyFileError, match="already"):
        keys.create(path, passphrase=None, unencrypted=True)
    (tmp_path / "link.pem").symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(KeyFileError):
        keys.create(tmp_path / "link.pem", passphrase=None, unencrypted=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_file_that_others_may_use_is_refused(mode, tmp_path):
    """KEY-4."""
    path = tmp_path / "key.pem"
    keys.create(path, passphrase=None, unencrypted=True)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="others"):
        keys.load(path, passphrase=None)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAA==\n", b"x" * 70000]
)
def test_a_file_that_is_no_key_is_refused(data, tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        keys.load(path, passphrase=None)


def test_a_missing_key_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(KeyFileError):
            keys.load(path, passphrase=None)


def test_a_key_of_another_kind_is_refused(tmp_path):
    """KEY-1."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    path = tmp_path / "key.pem"
    path.write_bytes(
        X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="another kind"):
        keys.load(path, passphrase=None)


def test_a_public_key_reads_from_text_and_pem():
    public = key(1).public
    assert keys.parse_public(public.pem()) == public
    assert keys.parse_public(f"{public}\n".encode()) == public
    for bad in (b"", b"\xff", public.pem().replace(b"MCow", b"MCoA"), public.pem()[:-40]):
        with pytest.raises(InvalidRecordError):
            keys.parse_public(bad)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_key(tmp_path):
    """KEY-3: a standard file, not one of our own."""
    path = tmp_path / "key.pem"
    public = keys.create(path, passphrase=b"abc")
    command = ["openssl", "pkey", "-in", path, "-passin", "pass:abc", "-pubout", "-outform", "DER"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == public.spki
