"""Signing (spec/attest.md)."""

from __future__ import annotations

import os
import shutil

import pytest

from kolm_build.attest.sign import sign_artifact
from kolm_build.attest.trust import parse_trust
from kolm_build.attest.verify import verify_artifact
from kolm_build.errors import ContentError, EvidenceError, MachineError, UntrustedError, UsageError
from tests.attest.helping import CI, forge, key, members, trust


def test_the_same_key_gives_the_same_file(unsigned, signed, tmp_path):
    """ATT-4."""
    again, twice = tmp_path / "again.kolm", tmp_path / "twice.kolm"
    sign_artifact(unsigned, again, key=key(1))
    sign_artifact(signed, twice, key=key(1))
    assert again.read_bytes() == twice.read_bytes() == signed.read_bytes()


def test_the_order_of_signing_does_not_matter(unsigned, tmp_path):
    """ATT-4: body and other attestations stay as they are."""
    one, other = tmp_path / "one.kolm", tmp_path / "other.kolm"
    for path, order in ((one, (1, 2)), (other, (2, 1))):
        shutil.copy(unsigned, path)
        for number in order:
            sign_artifact(
                path, path, key=key(number), role="approver" if number == 2 else "builder"
            )
    assert one.read_bytes() == other.read_bytes()
    names = [name for name in members(one) if name.startswith("attestations/")]
    assert names == [
        f"attestations/approved.{key(2).public.keyid[:16]}.dsse.json",
        f"attestations/built.{key(1).public.keyid[:16]}.dsse.json",
    ]


def test_signing_does_not_change_the_id_or_the_body(unsigned, signed):
    """ART-3."""
    before = verify_artifact(unsigned, trust=None)
    after = verify_artifact(signed, trust=trust(CI))
    assert before.artifact_id == after.artifact_id
    body = {name: data for name, data in members(signed).items() if "attestations" not in name}
    assert body == members(unsigned)


def test_what_does_not_hold_is_not_signed(unsigned, tmp_path):
    """ATT-3."""
    bad = tmp_path / "bad.kolm"
    data = bytearray(unsigned.read_bytes())
    data[data.index(b"model_type")] ^= 1
    bad.write_bytes(data)
    with pytest.raises(ContentError):
        sign_artifact(bad, tmp_path / "out.kolm", key=key(1))

    def lie(files):
        files["eval/gate.json"] = files["eval/gate.json"].replace(b"0.5", b"0.4")

    with pytest.raises(EvidenceError):
        sign_artifact(forge(unsigned, bad, lie), tmp_path / "out.kolm", key=key(1))
    assert list(tmp_path.iterdir()) == [bad]


def test_a_failed_write_leaves_nothing(unsigned, tmp_path, monkeypatch):
    """ATT-5."""

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError):
        sign_artifact(unsigned, tmp_path / "out.kolm", key=key(1))
    assert list(tmp_path.iterdir()) == []


def test_a_copy_without_the_kernel_s_help_is_the_same(unsigned, signed, tmp_path, monkeypatch):
    def unsupported(*_args: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    sign_artifact(unsigned, tmp_path / "out.kolm", key=key(1))
    assert (tmp_path / "out.kolm").read_bytes() == signed.read_bytes()


def test_an_unknown_role_is_refused(unsigned, tmp_path):
    with pytest.raises(UsageError):
        sign_artifact(unsigned, tmp_path / "out.kolm", key=key(1), role="root")


def test_a_folder_that_is_not_there_is_the_machine_s_trouble(unsigned, tmp_path):
    with pytest.raises(MachineError):
        sign_artifact(unsigned, tmp_path / "none" / "out.kolm", key=key(1))


@pytest.mark.parametrize(
    "window", ["until = 2999-01-01T00:00:00Z", "revoked = 2026-01-01T00:00:00Z"]
)
def test_a_key_with_a_window_does_not_count_in_an_artifact_which_has_no_time(signed, window):
    """WITNESS-4."""
    text = f"""version = 2
[threshold]
builder = 1
[[principal]]
name = "ci"
roles = ["builder", "log"]
keys = [{{key = "{key(1).public}", {window}}}]
"""
    with pytest.raises(UntrustedError):
        verify_artifact(signed, trust=parse_trust(text.encode(), "trust.toml"))
