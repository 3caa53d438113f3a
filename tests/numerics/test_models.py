"""Unmodified models, trained and sampled under the guard: one digest in every setting."""

import json
import os
import subprocess
import sys

import pytest
import torch

from kolm_build.numerics import guard, portable
from tests.support import zoo

pytestmark = pytest.mark.filterwarnings("ignore")  # of the model libraries

SETTINGS = [("avx512", 1), ("avx512", 2), ("avx2", 1), ("avx2", 2)]


@pytest.fixture(autouse=True)
def as_it_was():
    threads = torch.get_num_threads()
    portable.load()
    yield
    portable.set_isa(portable.isas()[0])
    torch.set_num_threads(threads)


def digest_of(case: zoo.Case, isa: str, threads: int) -> str:
    portable.set_isa(isa)
    torch.set_num_threads(threads)
    with guard.activate():
        return case.run()


@pytest.mark.parametrize("case", zoo.CASES, ids=str)
def test_a_model_trains_and_generates_with_the_same_bits_on_every_instruction_set_and_thread(case):
    """NUM-90: no operation outside the table; NUM-11, NUM-42 and the rest: one digest."""
    here = [(isa, threads) for isa, threads in SETTINGS if isa in portable.isas()]
    digests = {setting: digest_of(case, *setting) for setting in here}
    assert len(here) > 1
    assert len(set(digests.values())) == 1, digests


def test_fused_and_written_out_attention_give_one_model():
    """NUM-42: llama keeps its heads' keys in groups, gpt2 drops out."""
    for name in ("llama", "gpt2", "qwen3"):
        digests = {
            digest_of(zoo.Case(model=name, attention=one), portable.isas()[0], 2)
            for one in ("sdpa", "eager")
        }
        assert len(digests) == 1, name


def test_another_seed_gives_another_model():
    """The digest sees what it should see."""
    first = zoo.Case(model="gpt2").run()
    torch.manual_seed(1)
    assert zoo.digest(zoo.make("gpt2")) != first
    with guard.activate():
        torch.manual_seed(0)
        same = zoo.digest(zoo.make("gpt2"))
        torch.manual_seed(1)
        assert zoo.digest(zoo.make("gpt2")) != same


TRAINER = """
import json, sys
from kolm_build.numerics import guard
from tests.support import zoo
import transformers, trl, peft  # before the guard
cases = [case for case in zoo.CASES if str(case) in sys.argv[1:]]
with guard.activate():
    print(json.dumps([case.run() for case in cases] + [zoo.trainer_digest()]))
"""


def in_process(**environment: str) -> list[str]:
    wanted = ["llama-sdpa-float32", "gpt2-sdpa-float32", "llama-sdpa-bfloat16-lora"]
    command = [sys.executable, "-W", "ignore", "-c", TRAINER, *wanted]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.ml
def test_processes_of_any_environment_give_the_same_models_with_trl_and_lora():
    """The class's promise, for SFTTrainer with LoRA, dropout and accumulation among others."""
    first = in_process(ATEN_CPU_CAPABILITY="default", OMP_NUM_THREADS="1", PYTHONHASHSEED="1")
    second = in_process(
        ATEN_CPU_CAPABILITY="avx2",
        OMP_NUM_THREADS="2",
        PYTHONHASHSEED="2",
        MKL_CBWR="COMPATIBLE",
        ONEDNN_MAX_CPU_ISA="SSE41",
    )
    assert first == second
    assert len(set(first)) == 4
