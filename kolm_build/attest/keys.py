"""Ed25519 keys: their text forms, their files, and which of them are refused (spec/attest.md).

A public key is named by its keyid, the SHA-256 of its SubjectPublicKeyInfo. A private key lives
in one PKCS#8 file, encrypted under a key that scrypt makes from a passphrase; `openssl pkey`
reads it too. `cryptography` is imported where a signature is made or checked, no earlier.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import scrypt, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kolm_build.errors import InvalidRecordError, KeyFileError, PermissionDeniedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32
PREFIX = "ed25519:"
MAX_FILE_BYTES = 1 << 16

_SPKI = bytes.fromhex("302a300506032b6570032100")
_PRIME = (1 << 255) - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8})
"""The y coordinates of the eight points that anybody can make signatures for."""

# What scrypt costs: 16 MiB and five passes, the most memory that openssl reads without flags.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 14, 8, 5


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        raw: Its 32 bytes.

    Raises:
        InvalidRecordError: It is not canonical, or a point of small order, for which signatures
            can be forged.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != KEY_BYTES:
            raise InvalidRecordError("an Ed25519 key has 32 bytes", actual=repr(self.raw)[:80])
        y = int.from_bytes(self.raw, "little") & (1 << 255) - 1
        if y >= _PRIME or y in _SMALL_ORDER:
            raise InvalidRecordError(
                "a weak Ed25519 key: anybody can sign for it", actual=self.raw.hex()
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that ``ed25519:<64 hex digits>`` spells."""
        if not re.fullmatch(PREFIX + "[0-9a-f]{64}", text):
            raise InvalidRecordError(
                "not a public key",
                expected=f"{PREFIX} and 64 lower-case hex digits",
                actual=repr(text)[:90],
            )
        return cls(bytes.fromhex(text[len(PREFIX) :]))

    @property
    def spki(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo."""
        return _SPKI + self.raw

    @property
    def keyid(self) -> str:
        """The SHA-256 of `spki`, 64 hex digits."""
        return sha256(self.spki).hexdigest()

    def pem(self) -> bytes:
        """The key as a PEM file, for other tools."""
        return _pem("PUBLIC KEY", self.spki)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's on `message`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def __str__(self) -> str:
        return PREFIX + self.raw.hex()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that can sign.

    Attributes:
        public: Its public half.
        sign: The signature of a message; the same one every time.
    """

    public: PublicKey
    sign: Callable[[bytes], bytes]


def create(path: Path, *, passphrase: bytes | None, unencrypted: bool = False) -> PublicKey:
    """A new key in the new file `path`, readable by its owner alone.

    Args:
        path: The private key's file; it must not exist.
        passphrase: What the file is encrypted under.
        unencrypted: Write the key in the clear; the only way to have no passphrase.

    Raises:
        KeyFileError: The file exists, or there is neither a passphrase nor `unencrypted`.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not passphrase and not unencrypted:
        raise KeyFileError(
            "a key needs a passphrase",
            file=str(path),
            advice="Give one, or ask for an unencrypted key explicitly.",
        )
    if passphrase and unencrypted:
        raise KeyFileError("a passphrase for a key that is not to be encrypted", file=str(path))
    private = Ed25519PrivateKey.generate()
    _write_new(path, _private_pem(private.private_bytes_raw(), passphrase))
    return PublicKey(private.public_key().public_bytes_raw())


def load(path: Path, *, passphrase: bytes | None) -> SigningKey:
    """The private key in the file `path`.

    Raises:
        KeyFileError: It is not an Ed25519 PKCS#8 key, others may read it, or the passphrase is
            missing, wrong or not needed.
    """
    data = _read_private(path)
    if _is_encrypted(data) and not passphrase:
        raise KeyFileError("this key has a passphrase", file=str(path), advice="Give it.")
    if not _is_encrypted(data) and passphrase:
        raise KeyFileError("this key is not encrypted", file=str(path))
    private = _decode_private(data, passphrase or None, str(path))
    try:
        public = PublicKey(private.public_key().public_bytes_raw())
    except InvalidRecordError as error:
        raise KeyFileError(error.reason, file=str(path)) from None
    return SigningKey(public, private.sign)


def _decode_private(data: bytes, passphrase: bytes | None, file: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "wrong passphrase or damaged key" if passphrase else "not a private key"
        raise KeyFileError(reason, file=file, expected="an Ed25519 key in PKCS#8 PEM") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(
            "a key of another kind",
            file=file,
            expected="Ed25519",
            actual=type(private).__name__,
        )
    return private


def _is_encrypted(data: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data


def _read_private(path: Path) -> bytes:
    """The bytes of a key file that its owner alone may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise PermissionDeniedError("may not be read", file=str(path)) from error
    except OSError as error:
        raise KeyFileError("cannot be read", file=str(path), actual=error.strerror) from error
    try:
        _check_private(path, os.fstat(descriptor))
        return os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise KeyFileError("not a key file", file=str(path))
    if status.st_mode & 0o077 or status.st_uid not in {os.geteuid(), 0}:
        raise KeyFileError(
            "others may use this key",
            file=str(path),
            expected="owned by you, mode 0600",
            actual=f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            advice=f"chmod 600 {path}; make a new key if others may have read this one.",
        )


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise KeyFileError(
            "a file is there already", file=str(path), advice="Keys are never overwritten."
        ) from error
    except OSError as error:
        raise KeyFileError("cannot be written", file=str(path), actual=error.strerror) from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _private_pem(raw: bytes, passphrase: bytes | None) -> bytes:
    """PKCS#8 of the private key `raw`: PBES2 with scrypt and AES-256-CBC, or in the clear."""
    clear = _der(0x30, b"\x02\x01\x00", _der(0x30, _oid("2b6570")), _der(4, _der(4, raw)))
    if not passphrase:
        return _pem("PRIVATE KEY", clear)
    salt, start = os.urandom(16), os.urandom(16)
    key = scrypt(passphrase, salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=32)
    cost = [
        _der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))
        for number in (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
    ]
    derivation = _der(0x30, _oid("2b06010401da47040b"), _der(0x30, _der(4, salt), *cost))
    cipher = _der(0x30, _oid("60864801650304012a"), _der(4, start))
    scheme = _der(0x30, _oid("2a864886f70d01050d"), _der(0x30, derivation, cipher))
    return _pem("ENCRYPTED PRIVATE KEY", _der(0x30, scheme, _der(4, _aes_cbc(key, start, clear))))


def _aes_cbc(key: bytes, start: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256
    from cryptography.hazmat.primitives.ciphers.modes import CBC

    padding = 16 - len(data) % 16
    encryptor = Cipher(AES256(key), CBC(start)).encryptor()
    return encryptor.update(data + bytes([padding]) * padding) + encryptor.finalize()


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 0x80 else bytes([0x81, size])
    return bytes([tag]) + length + body


def _oid(digits: str) -> bytes:
    return _der(6, bytes.fromhex(digits))


def _pem(label: str, der: bytes) -> bytes:
    body = base64.b64encode(der)
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (
        label.encode(),
        b"\n".join(lines),
        label.encode(),
    )


def parse_public(data: bytes) -> PublicKey:
    """The public key in `data`: the text form, or a PEM file.

    Raises:
        InvalidRecordError: It is neither.
    """
    text = data.decode("ascii", "replace").strip()
    if not text.startswith("-----BEGIN PUBLIC KEY-----"):
        return PublicKey.parse(text)
    try:
        der = base64.b64decode("".join(text.splitlines()[1:-1]), validate=True)
    except binascii.Error:
        der = b""
    if der[: len(_SPKI)] != _SPKI or _pem("PUBLIC KEY", der).decode().strip() != text:
        raise InvalidRecordError("not an Ed25519 public key in PEM", actual=repr(text)[:90])
    return PublicKey(der[len(_SPKI) :])
