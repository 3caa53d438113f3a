"""Under portable-1 a prompt is answered alone as it is among others, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.numerics import kernels, native
from kolm_build.runtime.generate import continue_greedily, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.runtime.ragged import joined
from tests.support.models import ROOT, tiny_llama

LENGTHS = (250, 3, 256, 19, 257, 64, 19, 63)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(4, 260, (length,), generator=generator).tolist()


def answers(network, prompts, steps=5):
    """Tokens and the logits of every step, of prompts continued together."""
    prefixes = [read_prompts(network, [ids]) for ids in prompts]
    prefix = joined(prefixes, room=steps)
    seen = []

    class Watched:
        def __call__(self, **given):
            out = network(**given)
            seen.append(out.logits[:, -1].clone())
            return out

    watched = type(prefix)(network=Watched(), cache=prefix.cache, logits=prefix.logits)
    tokens = continue_greedily(watched, max_new_tokens=steps, stop_ids=set())
    return tokens, torch.stack([prefix.logits, *seen], dim=1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    native.apply(Numerics(cls="native-1", seed=1))
    return load(tiny_llama(tmp_path_factory.mktemp("load") / "model")).network


def test_rows_of_several_lengths_say_what_they_say_alone(network):
    """EVAL-2: on stock kernels up to rounding; a wrong place or mask would show here already."""
    prompts = [prompt(length) for length in LENGTHS]
    tokens, logits = answers(network, prompts)
    for row, ids in enumerate(prompts):
        alone, expected = answers(network, [ids])
        assert tokens[row] == alone[0]
        torch.testing.assert_close(logits[row], expected[0], rtol=1e-4, atol=1e-5)


def test_one_prefix_is_taken_as_it_is(network):
    prefix = read_prompts(network, [prompt(5), prompt(5, 1)])
    assert joined([prefix], room=3) is prefix


def test_joining_leaves_the_prefixes_as_they_were(network):
    one, other = (read_prompts(network, [prompt(length)]) for length in (4, 9))
    before = [layer.keys.clone() for layer in one.cache.layers]
    continue_greedily(joined([one, other], room=3), max_new_tokens=3, stop_ids=set())
    assert all(
        torch.equal(layer.keys, keys) for layer, keys in zip(one.cache.layers, before, strict=True)
    )


def test_a_cache_that_forgets_keys_is_refused(network):
    from transformers.cache_utils import DynamicLayer

    from kolm_build.errors import BuildError

    class Forgetful(DynamicLayer):
        pass

    prefixes = [read_prompts(network, [prompt(length)]) for length in (4, 9)]
    prefixes[1].cache.layers[0].__class__ = Forgetful
    with pytest.raises(BuildError, match="several lengths"):
        joined(prefixes, room=3)


PORTABLE = """
import json, sys
from pathlib import Path
import torch
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics import kernels, portable
from kolm_build.numerics.apply import applied
from kolm_build.runtime.generate import continue_greedily, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.runtime.ragged import joined
from tests.runtime.test_ragged import LENGTHS, answers, prompt

model, threads, isa = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def same(one, other):
    return bool(torch.equal(one, other))


def main():
    network = load(model).network
    if isa not in portable.isas():
        print(json.dumps(None))
        return
    portable.set_isa(isa)
    found = {}

    prompts = [prompt(length) for length in LENGTHS]
    alone = [answers(network, [ids]) for ids in prompts]
    for size in range(1, 9):
        tokens, logits = answers(network, prompts[:size])
        found[f"batch of {size}"] = all(
            tokens[row] == alone[row][0][0] and same(logits[row], alone[row][1][0])
            for row in range(size)
        )

    mine = prompt(70)
    _, one = answers(network, [mine, prompt(300), prompt(5)])
    _, other = answers(network, [mine, prompt(12, 3), prompt(257, 4), prompt(71, 5)])
    found["other neighbours"] = same(one[0], other[0])

    equal = read_prompts(network, [prompt(40, seed) for seed in range(4)])
    single = read_prompts(network, [prompt(40, 2)])
    found["read among others"] = same(equal.logits[2], single.logits[0])

    padded = torch.tensor([mine + [3] * 30])
    mask = torch.tensor([[1] * len(mine) + [0] * 30])
    with torch.inference_mode():
        right = network(input_ids=padded, attention_mask=mask).logits[0, : len(mine)]
        plain = network(input_ids=torch.tensor([mine])).logits[0]
    found["padding on the right"] = same(right, plain)

    for length in (250, 256, 257, 500, 511, 512, 513, 600):
        ids = prompt(length + 6, 7)
        with torch.inference_mode():
            whole = network(input_ids=torch.tensor([ids])).logits[0]
            for name, cuts in (("token by token", range(length, length + 6)),
                               ("in parts", range(0, length + 6, 100))):
                edges = sorted({0, *cuts, length + 6})
                cache, parts = None, []
                for start, end in zip(edges, edges[1:]):
                    seen = network(input_ids=torch.tensor([ids[start:end]]), past_key_values=cache,
                                   use_cache=True)
                    cache = seen.past_key_values
                    parts.append(seen.logits[0])
                found[f"{length} read {name}"] = same(torch.cat(parts), whole)
    print(json.dumps(found))


with applied(
    Numerics(cls="portable-1", seed=1),
    Circumstances(kernels=str(kernels.LIBRARY), threads=threads),
):
    main()
"""


@pytest.mark.ml
@pytest.mark.skipif(not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled")
@pytest.mark.parametrize(
    ("threads", "isa"), [("1", "avx512"), ("2", "avx512"), ("1", "avx2"), ("2", "neon")]
)
def test_a_row_is_computed_on_its_own_tokens_alone(tmp_path, threads, isa):
    """NUM-11, NUM-42, NUM-43, EVAL-2: every logit, bit for bit."""
    model = tiny_llama(tmp_path / "model", window=1024)
    done = subprocess.run(
        [sys.executable, "-c", PORTABLE, str(model), threads, isa],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if found is None:
        pytest.skip(f"this machine has no {isa}")
    assert len(found) == 8 + 3 + 2 * 8
    assert [name for name, is_same in found.items() if not is_same] == []
