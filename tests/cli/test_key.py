import json
import stat

from kolm_build.attest.trust import parse_trust
from tests.artifact import making
from tests.cli.command import kolm, kolm_process


def test_a_new_key_is_private_and_its_public_half_lies_beside_it(home):
    answer = kolm("key", "new", "--unencrypted")
    key = home / ".config/kolm/key.pem"
    assert answer.status == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (home / ".config/kolm/key.pem.pub").read_text() == answer.out


def test_a_key_is_never_overwritten(tmp_path):
    kolm("key", "new", "--unencrypted", str(tmp_path / "k"))
    before = (tmp_path / "k").read_bytes()
    answer = kolm("key", "new", "--unencrypted", str(tmp_path / "k"))
    assert answer.status == 66
    assert "Keys are never overwritten." in answer.err
    assert (tmp_path / "k").read_bytes() == before


def test_an_encrypted_key_shows_its_public_half_without_the_passphrase(tmp_path):
    (tmp_path / "pass").write_text("correct horse\n")
    made = kolm("key", "new", str(tmp_path / "k"), "--passphrase-file", str(tmp_path / "pass"))
    assert b"ENCRYPTED" in (tmp_path / "k").read_bytes()
    shown = json.loads(kolm("key", "show", str(tmp_path / "k"), "--json").out)
    assert shown["key"] == made.out.strip()


def test_without_its_public_file_a_key_asks_for_the_passphrase(tmp_path):
    (tmp_path / "pass").write_text("correct horse\n")
    made = kolm("key", "new", str(tmp_path / "k"), "--passphrase-file", str(tmp_path / "pass"))
    (tmp_path / "k.pub").unlink()
    asked = kolm_process("key", "show", str(tmp_path / "k"))
    assert asked.status == 66
    assert "--passphrase-file FILE or $KOLM_PASSPHRASE" in asked.err
    given = kolm_process("key", "show", str(tmp_path / "k"), KOLM_PASSPHRASE="correct horse")
    assert given.out.splitlines()[0] == made.out.strip()
    wrong = kolm_process("key", "show", str(tmp_path / "k"), KOLM_PASSPHRASE="battery")
    assert wrong.status == 66
    assert "wrong passphrase" in wrong.err


def test_a_new_key_that_nobody_can_be_asked_about_may_be_made_openly(tmp_path):
    told = kolm_process("key", "new", str(tmp_path / "k"))
    assert told.status == 66
    assert "or make it with --unencrypted." in told.err
    assert "--no-sign" not in told.err


def test_a_trusted_key_is_in_the_trust_file_once(home, tmp_path):
    public = kolm("key", "new", "--unencrypted", str(tmp_path / "k")).out.strip()
    assert kolm("key", "trust", public, "--name", "ci").status == 0
    trust = home / ".config/kolm/trust.toml"
    assert trust.read_text() == (
        "version = 1\n\n[threshold]\nbuilder = 1\n\n"
        f'[[principal]]\nname = "ci"\nroles = ["builder"]\nkeys = ["{public}"]\n'
    )
    before = trust.read_text()
    again = kolm("key", "trust", str(tmp_path / "k.pub"), "--name", "ci2")
    assert again.status == 66
    assert "there twice" in again.err
    assert trust.read_text() == before


def test_a_second_principal_is_added_below_the_first(home, tmp_path):
    for name in ("anna", "ben"):
        kolm("key", "new", "--unencrypted", str(tmp_path / name))
        roles = ["--role", "builder", "--role", "approver"]
        key = str(tmp_path / f"{name}.pub")
        assert kolm("key", "trust", key, "--name", name, *roles).status == 0
    text = (home / ".config/kolm/trust.toml").read_text()
    assert text.count("[[principal]]") == 2
    assert 'roles = ["builder", "approver"]' in text


def test_a_name_cannot_smuggle_in_another_principal(home, tmp_path):
    kolm("key", "new", "--unencrypted", str(tmp_path / "k"))
    name = 'x"\nroles=["builder"]\n#'
    assert kolm("key", "trust", str(tmp_path / "k.pub"), "--name", name).status == 66
    assert not (home / ".config/kolm/trust.toml").exists()


def test_the_key_is_the_option_then_the_variable_then_the_users_own(home, tmp_path, monkeypatch):
    """CLI-12."""
    from kolm_build.surfaces.signing import find_key

    assert find_key(None, None) is None
    made = {}
    for name in ("own", "variable", "option"):
        path = tmp_path / name if name != "own" else home / ".config/kolm/key.pem"
        argv = [] if name == "own" else [str(path)]
        made[name] = kolm("key", "new", "--unencrypted", *argv).out.strip()
    assert str(find_key(None, None).public) == made["own"]
    monkeypatch.setenv("KOLM_KEY", str(tmp_path / "variable"))
    assert str(find_key(None, None).public) == made["variable"]
    assert str(find_key(tmp_path / "option", None).public) == made["option"]


def test_the_trust_file_is_the_option_then_the_variable_then_the_users_own(
    home, tmp_path, monkeypatch
):
    """CLI-13."""
    key = kolm("key", "new", "--unencrypted", str(tmp_path / "k")).out.strip()
    kolm("key", "trust", key, "--name", "own")
    monkeypatch.setenv("KOLM_TRUST", str(tmp_path / "variable.toml"))
    kolm("key", "trust", key, "--name", "variable")
    kolm("key", "trust", key, "--name", "option", "--trust", str(tmp_path / "option.toml"))
    for name, path in {
        "own": home / ".config/kolm/trust.toml",
        "variable": tmp_path / "variable.toml",
        "option": tmp_path / "option.toml",
    }.items():
        assert f'name = "{name}"' in path.read_text()


def test_without_a_trust_file_nothing_is_trusted(tmp_path):
    answer = kolm("verify", str(making.make(tmp_path)))
    assert answer.status == 66
    assert "there is no trust file, so nobody is trusted" in answer.err


def test_an_organisation_is_kept_in_a_trust_file_that_may_say_it(home, tmp_path):
    """QUORUM-1."""
    kolm("key", "new", str(tmp_path / "k"), "--unencrypted")
    public = (tmp_path / "k.pub").read_text().strip()
    trust = ("--trust", str(tmp_path / "t.toml"))
    assert (
        kolm("key", "trust", public, "--name", "ci", "--organisation", "acme", *trust).status == 0
    )
    found = parse_trust((tmp_path / "t.toml").read_bytes(), "t.toml")
    assert found.quorum.builders == {"ci": "acme"}
    kolm("key", "new", str(tmp_path / "l"), "--unencrypted")
    other = (tmp_path / "l.pub").read_text().strip()
    old = ("--trust", str(tmp_path / "old.toml"))
    assert kolm("key", "trust", public, "--name", "ci", *old).status == 0
    refused = kolm("key", "trust", other, "--name", "me", "--organisation", "acme", *old)
    assert (refused.status, "more than a trust file of version 1" in refused.err) == (66, True)
