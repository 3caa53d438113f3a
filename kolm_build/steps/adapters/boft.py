"""``boft``: inputs turned by a butterfly of orthogonal blocks (arXiv:2311.06243).

W' = s (W R'), R the product of m block-diagonal orthogonal factors between permutations; with one
factor it is OFT with trained lengths. Own modules in PEFT's names: PEFT's compiles a CUDA program
when it is made, knows one factor without it, and solves by LAPACK.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn.functional import linear

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import config_of
from kolm_build.steps._adapter_kinds import BOFT, boft_rotation
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._change import Change, adapted_layers, check_layers
from kolm_build.steps.adapters._files import finite, write_adapter
from kolm_build.steps.adapters.lora import modules


class Turned(torch.nn.Module):
    """A linear layer whose inputs are turned and whose outputs are scaled.

    Args:
        base: The layer.
        factors: How many factors the rotation has.
        size: Rows of a block.
    """

    def __init__(self, base: torch.nn.Linear, factors: int, size: int) -> None:
        super().__init__()
        self.base_layer = base
        self.boft_R = torch.nn.Parameter(torch.zeros(factors, base.in_features // size, size, size))
        self.boft_s = torch.nn.Parameter(torch.ones(base.out_features, 1))
        self.enabled = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, in the dtype of its inputs."""
        if not self.enabled:
            return self.base_layer(inputs)
        rotation = boft_rotation({"boft_R": self.boft_R})
        turned = (inputs.float() @ rotation).to(inputs.dtype)
        outputs = linear(turned, self.base_layer.weight).float() * self.boft_s[:, 0]
        if self.base_layer.bias is not None:
            outputs = outputs + self.base_layer.bias.float()
        return outputs.to(inputs.dtype)


class Boft(Change):
    """A butterfly before every adapted layer.

    Args:
        block_size: Rows of a block, even.
        factors: Factors of the rotation.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    def __init__(
        self, block_size: int, factors: int, target_modules: tuple[str, ...], adapter_dtype: str
    ) -> None:
        self.block_size, self.factors = block_size, factors
        self.target_modules, self.adapter_dtype = target_modules, adapter_dtype

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe.

        Raises:
            InvalidRecordError: The size of a block is odd.
        """
        size = count(fields, "boft_block_size", 4, least=2)
        if size % 2:
            raise InvalidRecordError(
                "an odd number of rows", where="boft_block_size", expected="an even one"
            )
        return cls(
            size,
            count(fields, "boft_factors", 2),
            modules(fields, "target_modules"),
            choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    def attach(self, network: Any) -> Any:
        """`network`, frozen, with its adapted layers replaced."""
        check_layers(network, self.target_modules)
        network.requires_grad_(requires_grad=False)
        for path, layer in adapted_layers(network, self.target_modules):
            self._check(path, layer)
            parent, _, name = path.rpartition(".")
            turned = Turned(layer, self.factors, self.block_size)
            setattr(network.get_submodule(parent), name, turned)
        return network

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the adapter's three files (SFT-8, ADPT-1, ADPT-3)."""
        dtype = COMPUTE_DTYPES[self.adapter_dtype]
        state = {
            f"base_model.model.{name}": one.detach().to(dtype)
            for name, one in network.named_parameters()
            if one.requires_grad
        }
        settings = {
            "boft_block_size": self.block_size,
            "boft_n_butterfly_factor": self.factors,
        }
        config = config_of(BOFT, settings, finite(state))
        write_adapter(state, config, base=base, out=out)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters."""
        return _disabled(network)

    def _check(self, path: str, layer: torch.nn.Linear) -> None:
        """Refuse a layer whose inputs the butterfly does not divide."""
        whole = self.block_size << (self.factors - 1)
        if layer.in_features % whole:
            raise InvalidRecordError(
                "a layer's inputs cannot be divided into the butterfly's blocks",
                where=path,
                expected=f"a multiple of {whole} inputs (boft_block_size, boft_factors)",
                actual=str(layer.in_features),
            )


@contextmanager
def _disabled(network: Any) -> Iterator[None]:
    layers = [module for module in network.modules() if isinstance(module, Turned)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
