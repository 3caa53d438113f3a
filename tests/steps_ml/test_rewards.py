"""Rewards: a recipe's own function in its process, rules, and reward models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kolm_build.core import strict_json
from kolm_build.errors import InvalidDataError, InvalidRecordError, StepFailedError
from kolm_build.steps._reward_file import RewardFile

HEAD = "def reward(prompt, completion, reference, fields):\n    "


def called(folder, body, *, timeout=20, times=1, **request):
    """What a file whose function's body is `body` gives."""
    path = folder / "reward.py"
    path.write_text(body if "def reward" in body else HEAD + body)
    given = {"prompt": "p", "completion": "c", "reference": "r", "fields": {}} | request
    with RewardFile(path, timeout) as file:
        return [file.call(**given, where="row 3 (sha256:0), completion 2") for _ in range(times)]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 1", 1.0),
        ("return True", 1.0),
        ("return -0.1", -0.1),
        ("return '0.25'", 0.25),
        ("return 10 ** 19", 1e19),
        ("return len(prompt + completion) + 2 * len(reference) + len(fields['unit'])", 6.0),
    ],
)
def test_a_reward_is_a_float_an_integer_or_decimal_text(tmp_path, body, value):
    """RL-12, RL-13."""
    assert called(tmp_path, body, fields={"unit": "mg"}) == [value]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no')", "raised an error"),
        ("import sys; sys.exit(3)", "raised an error"),
        ("return float('nan')", "not a finite number"),
        ("return float('inf')", "not a finite number"),
        ("return 10 ** 400", "gave no number"),
        ("return 'a lot'", "gave no number"),
        ("return None", "gave no number"),
        ("return [1.0, 2.0]", "gave no number"),
        ("import os; os._exit(0)", "ended its process"),
        ("import os; os.kill(os.getpid(), 9)", "ended its process"),
        (
            "import os; [os.write(fd, b'{}\\n') for fd in range(3, 9) if alive(fd)]; return 1",
            "answer",
        ),
    ],
)
def test_anything_else_is_refused_with_its_row_and_completion(tmp_path, body, reason):
    """RL-13, RL-14."""
    alive = "import os\ndef alive(fd):\n    try:\n        return os.fstat(fd) is not None\n"
    body = f"{alive}    except OSError:\n        return False\n{HEAD}{body}"
    with pytest.raises(StepFailedError, match=reason) as caught:
        called(tmp_path, body)
    assert caught.value.where == "row 3 (sha256:0), completion 2"
    assert caught.value.file == "reward.py"


def test_an_answer_that_the_function_wrote_itself_is_not_that_of_the_next_call(tmp_path):
    """RL-14: seen alone it has the first call's number, and the true one comes a call late."""
    forged = strict_json.dumps({"decimal": "7", "number": 1}).decode()
    body = (
        "import os, stat\n    for fd in range(3, 9):\n        try:\n"
        "            if stat.S_ISFIFO(os.fstat(fd).st_mode):\n"
        f"                os.write(fd, b'{forged}\\n')\n"
        "        except OSError:\n            pass\n    return 1"
    )
    with pytest.raises(StepFailedError, match=r"more than one answer|what is no answer"):
        called(tmp_path, body, times=3)


def test_a_function_that_hangs_is_ended(tmp_path):
    """RL-14."""
    with pytest.raises(StepFailedError, match="no answer in 1 seconds") as caught:
        called(tmp_path, "while True: pass", timeout=1)
    assert caught.value.where == "row 3 (sha256:0), completion 2"


@pytest.mark.parametrize(
    ("text", "actual"),
    [
        ("def reward(:", "SyntaxError"),
        ("reward = 1", "no function `reward`"),
        ("import numpy\n" + HEAD + "return 1", "ModuleNotFoundError"),
        ("1 / 0\n" + HEAD + "return 1", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused(tmp_path, text, actual):
    """RL-11, RL-12: the standard library is all there is."""
    (tmp_path / "reward.py").write_text(text)
    with (
        pytest.raises(StepFailedError, match="cannot be loaded") as caught,
        RewardFile(tmp_path / "reward.py", 20),
    ):
        raise AssertionError
    assert actual in caught.value.actual


def test_the_process_sees_no_environment_and_one_order_of_sets(tmp_path, monkeypatch):
    """RL-11: and random numbers begin anew with every call."""
    monkeypatch.setenv("SECRET", "x")
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found += called(tmp_path, "import os; return len(os.environ.get('SECRET', ''))")
        found += called(tmp_path, "return hash('a') % 1000003")
        found += called(tmp_path, "import random; return random.random()", times=2)
    assert found[0] == 0.0
    assert found[2] == found[3]
    assert found[:4] == found[4:]


def test_what_it_prints_is_no_answer(tmp_path):
    """RL-12."""
    assert called(tmp_path, "print('{}'); return 2", times=3) == [2.0] * 3


@pytest.mark.parametrize(
    ("rule", "said", "reference", "right"),
    [
        ("exact", "lung", "lung", True),
        ("exact", "Lung", "lung", False),
        ("label", "It is the Lung.", "lung", True),
        ("label", "lungs", "lung", False),
        ("label", "lung or skin", "lung", False),
        ("label", "skin", "lung", False),
        ("regex", "12 mg", r"\d+ mg", True),
        ("regex", "12 mg!", r"\d+ mg", False),
    ],
)
def test_rules(rule, said, reference, right):
    """RL-16, RL-17, RL-18."""
    from kolm_build.steps._rewards import RuleReward

    made = RuleReward(rule)
    rows = [example(1, reference), example(2, "skin")]
    made.check(rows)
    with made.judging() as judge:
        assert judge(rows[0], f" {said}\n", "row 1") == float(right)


def example(number, reference):
    row = SimpleNamespace(reference=reference, id="sha256:0", messages=[], fields={})
    return SimpleNamespace(row=row, where=f"row {number} (sha256:0)")


@pytest.mark.parametrize(("rule", "reference"), [("exact", " "), ("regex", "(")])
def test_a_rule_refuses_a_row_that_it_cannot_judge(rule, reference):
    """RL-15."""
    from kolm_build.steps._rewards import RuleReward

    with pytest.raises(InvalidDataError) as caught:
        RuleReward(rule).check([example(1, "a"), example(2, reference)])
    assert caught.value.where == "row 2 (sha256:0)"


def test_an_input_that_is_not_used_is_refused(tmp_path):
    """RL-10."""
    from kolm_build.steps._rewards import RewardParams

    given = SimpleNamespace(request=SimpleNamespace(inputs={"reward": str(tmp_path)}, step="grpo"))
    for reward_by, role in (("exact", "reward"), ("model", "reward")):
        with pytest.raises(InvalidRecordError, match="nothing uses") as caught:
            RewardParams(reward_by=reward_by, reward_timeout_seconds=1).reward(given, [])
        assert caught.value.where == role
    given.request.inputs.clear()
    with pytest.raises(InvalidRecordError, match="lacks an input"):
        RewardParams(reward_by="file", reward_timeout_seconds=1).reward(given, [])


def test_a_model_without_a_head_is_no_reward_model(tmp_path):
    """RL-22, RL-23."""
    import torch

    from kolm_build.steps._reward_head import RewardHead

    with pytest.raises(InvalidRecordError, match="not a reward model"):
        RewardHead.read(tmp_path)
    RewardHead(kind="outcome", weight=torch.tensor([1.0, -2.0])).write(tmp_path)
    head = RewardHead.read(tmp_path)
    assert head.kind == "outcome"
    assert head.of(torch.tensor([[3.0, 1.0], [0.0, 0.5]])).tolist() == [1.0, -1.0]
    (tmp_path / "reward_head.json").write_bytes(
        strict_json.dumps({"format": "reward-head/2", "kind": "outcome"})
    )
    with pytest.raises(InvalidRecordError, match="another format"):
        RewardHead.read(tmp_path)
