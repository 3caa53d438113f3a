"""What was read before is not read again, and changes no bit."""

from __future__ import annotations

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics import kernels
from kolm_build.numerics.apply import applied
from kolm_build.runtime.generate import continue_greedily, read_prompts, reads
from kolm_build.runtime.loading import load
from kolm_build.runtime.modules import keep
from kolm_build.runtime.prompt_cache import PromptCache
from tests.support.models import tiny_llama
from tests.support.quantised import quantised

pytestmark = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)


class Counting:
    """A network that notes how many tokens it reads."""

    def __init__(self, network):
        self.network, self.read = network, []

    def __call__(self, **given):
        self.read.append(given["input_ids"].shape[1])
        return self.network(**given)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    plain = tiny_llama(root / "plain", window=2048)
    return {"plain": plain, "w4a16": quantised(plain, root / "w4a16", "w4a16", embeddings="int8")}


@pytest.fixture
def portable():
    here = Circumstances(kernels=str(kernels.LIBRARY), threads=1)
    with applied(Numerics(cls="portable-1", seed=1), here):
        yield


def tokens(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 260, (length,), generator=generator).tolist()


SYSTEM = tokens(300, 9)
PROMPTS = [SYSTEM + tokens(5, 1), SYSTEM + tokens(40, 2), SYSTEM[:70] + tokens(9, 3), SYSTEM]


@pytest.mark.parametrize("kind", ["plain", "w4a16"])
def test_what_was_read_before_changes_no_bit(folders, portable, kind):
    """GEN-30, GEN-43: logits, and all that is said after them."""
    network = load(folders[kind]).network
    cache = PromptCache(reads(network), keep)
    for ids in [*PROMPTS, PROMPTS[0], tokens(1, 4)]:
        known, alone = cache.read(ids), read_prompts(network, [ids])
        assert torch.equal(known.logits, alone.logits)
        for one, other in zip(known.cache.layers, alone.cache.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)
        said = [
            continue_greedily(prefix, max_new_tokens=5, stop_ids=set()) for prefix in (known, alone)
        ]
        assert said[0] == said[1]


def test_only_what_is_new_is_read_and_the_last_token_always(folders, portable):
    """GEN-30, GEN-31."""
    network = Counting(load(folders["plain"]).network)
    cache = PromptCache(reads(network), keep)
    for ids in [*PROMPTS, PROMPTS[0]]:
        cache.read(ids)
    assert network.read == [305, 40, 9, 1, 1]


def test_what_is_kept_is_bounded_and_the_one_used_longest_ago_goes(folders, portable):
    """GEN-31."""
    network = Counting(load(folders["plain"]).network)
    cache = PromptCache(reads(network), keep, max_tokens=25)
    first, second, third = tokens(10, 1), tokens(10, 2), tokens(10, 3)
    for ids in (first, second, first, third, first, second):
        cache.read(ids)
    assert network.read == [10, 10, 1, 10, 1, 10]


def test_layers_that_forget_keys_are_not_kept(folders, portable):
    """GEN-32."""
    from transformers.cache_utils import DynamicLayer

    class Forgetful(DynamicLayer):
        pass

    inner = load(folders["plain"]).network

    def network(**given):
        seen = inner(**given)
        for layer in seen.past_key_values.layers:
            layer.__class__ = Forgetful
        return seen

    counting = Counting(network)
    cache = PromptCache(reads(counting), keep)
    cache.read(SYSTEM[:9])
    cache.read(SYSTEM[:9])
    assert counting.read == [9, 9]
