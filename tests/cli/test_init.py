import json
import tomllib

from tests.cli.command import kolm


def test_init_writes_a_recipe_and_rows_and_says_what_is_next(tmp_path):
    folder = tmp_path / "Triage v2"
    answer = kolm("init", str(folder))
    assert answer.status == 0
    assert answer.out == f"{folder}/kolm.toml\n{folder}/rows.jsonl\n"
    assert answer.err == f"next: kolm lock -C {folder} && kolm build -C {folder}\n"
    assert tomllib.loads((folder / "kolm.toml").read_text())["name"] == "triage-v2"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) == 32


def test_init_overwrites_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine")
    answer = kolm("init", str(tmp_path))
    assert answer.status == 2
    assert answer.err == (
        f"error: {tmp_path}/rows.jsonl: a file is there already\n  Nothing was written.\n"
    )
    assert not (tmp_path / "kolm.toml").exists()


def test_a_name_that_no_model_may_have_is_refused(tmp_path):
    answer = kolm("init", str(tmp_path), "--name", "Ünï")
    assert answer.status == 2
    assert "not a model name" in answer.err
    assert list(tmp_path.glob("*.toml")) == []
