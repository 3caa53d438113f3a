"""Scales of input channels: AWQ, SmoothQuant, where they are put, and ranges that are cut."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch

from kolm_build.core.quantisation import Grid
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.quantised import nearest, scales, values
from kolm_build.steps.quantisation import awq, observing, smoothquant
from kolm_build.steps.quantisation.clipping import clipped
from kolm_build.steps.quantisation.folding import Fold
from kolm_build.steps.quantisation.results import squared_outputs
from kolm_build.steps.quantisation.rounding import Grids
from tests.quantisation.calibrating import (
    first_block,
    grids_of,
    portable,
    tiny_network,
    token_rows,
    uneven_network,
)

SCHEMES = ("w4a16", "w4a16-asym", "w8a8", "fp8", "nvfp4a16", "mxfp4")


def random_scale(size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.3, 3, size).astype(np.float32))


class TestFolding:
    """QUANT-80: a scale that is folded in changes nothing that the block computes."""

    def folds(self, **dtypes):
        block = first_block(tiny_network())
        grids = grids_of(tiny_network(), **dtypes)
        found = [
            Fold.of_norm(block, stage, grids) or Fold.of_linear(block, stage, grids)
            for stage in block.stages
        ]
        return block, [fold for fold in found if fold is not None]

    def test_norms_and_the_up_projection_take_scales_and_shared_values_do_not(self):
        """The tiny model's heads share values, so o_proj has more columns than v_proj rows."""
        _, folds = self.folds()
        assert [fold.producer.removeprefix("model.layers.0.") for fold in folds] == [
            "input_layernorm",
            "post_attention_layernorm",
            "mlp.up_proj",
        ]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("at", range(3))
    def test_the_block_s_output_stays(self, at, dtype):
        block, folds = self.folds(model_dtype=dtype)
        fold = folds[at]
        before = block.output()
        weight = block.linear(fold.stage.layers[0]).weight.data
        scale = fold.settled(random_scale(weight.shape[1]))
        assert fold.apply(scale)
        assert not torch.equal(block.linear(fold.stage.layers[0]).weight.data, weight)
        torch.testing.assert_close(block.output(), before, rtol=1e-5, atol=1e-5)

    def test_a_norm_is_kept_as_its_file_stores_it_and_the_scale_is_what_that_left(self):
        """QUANT-80: nothing is lost where the norm is rounded."""
        block, folds = self.folds(model_dtype=torch.bfloat16)
        norm = block.part(folds[0].producer)
        before = norm.weight.data
        scale = folds[0].settled(random_scale(len(before)))
        assert folds[0].apply(scale)
        assert torch.equal(norm.weight.data, norm.weight.data.bfloat16().float())
        torch.testing.assert_close(norm.weight.data * scale, before, rtol=2.0**-23, atol=0)
        assert folds[0].changed()[f"{folds[0].producer}.weight"].dtype == torch.bfloat16

    def test_a_norm_s_zero_stays_and_its_channel_has_no_scale(self):
        block, folds = self.folds()
        norm = block.part(folds[0].producer)
        norm.weight.data[3] = 0
        scale = folds[0].settled(random_scale(len(norm.weight)))
        assert float(scale[3]) == 1
        assert folds[0].apply(scale)
        assert float(norm.weight[3]) == 0

    def test_a_norm_that_somebody_else_reads_is_left_alone(self):
        """QUANT-81."""
        block, folds = self.folds()
        fold = folds[1]
        norm, mlp = block.part(fold.producer), block.part("model.layers.0.mlp")
        inside = mlp.forward
        mlp.forward = lambda x: inside(x) + x
        before = block.output()
        tensors = {name: one.clone() for name, one in block.module.state_dict().items()}
        assert not fold.apply(fold.settled(random_scale(len(norm.weight))))
        assert torch.equal(block.output(), before)
        for name, one in block.module.state_dict().items():
            assert torch.equal(one, tensors[name])

    def test_a_stage_with_a_layer_that_is_kept_takes_no_scale(self):
        """QUANT-81."""
        block = first_block(tiny_network())
        grids = grids_of(tiny_network())
        fewer = {
            name: grid
            for name, grid in grids.by_layer.items()
            if not name.endswith(("k_proj", "up_proj"))
        }
        for stage in block.stages:
            assert Fold.of_norm(block, stage, Grids(by_layer=fewer)) is None
            assert Fold.of_linear(block, stage, Grids(by_layer=fewer)) is None


class TestAwq:
    def test_channels_that_carry_the_same_have_no_scale(self):
        """QUANT-82: uniform activations leave rounding to nearest."""
        for mean in (0.1, 0.7, 3.0, 1e-7):
            for power in (0.0, 0.35, 0.95):
                assert torch.equal(awq.scale_of(torch.full((9,), mean), power), torch.ones(9))

    def test_uniform_activations_leave_rounding_to_nearest(self):
        """QUANT-82."""
        block, grids = first_block(tiny_network()), grids_of(tiny_network())
        stage = block.stages[0]
        seen = block.statistics(stage)
        fold = Fold.of_norm(block, stage, grids)
        uniform = type(seen)(
            gram=seen.gram, mean=torch.full_like(seen.mean, 0.3), most=seen.most, tokens=seen.tokens
        )
        found = awq.best_scale(fold, block.weights(stage.layers), uniform, grids, 20)
        assert torch.equal(found, torch.ones_like(found))

    def test_one_power_is_no_scale(self):
        """QUANT-82: the only power is 0."""
        network = tiny_network()
        with portable():
            found = awq.quantise(network, token_rows(), grids_of(network), powers=1)
        assert all(torch.equal(one, torch.ones_like(one)) for one in found.columns.values())

    def test_the_scale_that_is_chosen_has_the_least_error_of_all_that_are_tried(self):
        block, grids = first_block(uneven_network()), grids_of(tiny_network())
        stage = block.stages[2]
        seen, fold = block.statistics(stage), Fold.of_norm(block, stage, grids)
        weights = block.weights(stage.layers)

        def loss(scale):
            return sum(
                float(
                    squared_outputs(
                        values(nearest(one * scale, scales(one * scale, grids.by_layer[name])))
                        / scale
                        - one,
                        seen.gram32(),
                    ).sum()
                )
                for name, one in weights.items()
            )

        tried = [fold.settled(awq.scale_of(seen.mean, at / 20)) for at in range(20)]
        best = awq.best_scale(fold, weights, seen, grids, 20)
        assert loss(best) == min(map(loss, tried)) < loss(tried[0])

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_network_gets_better(self, scheme):
        network = uneven_network()
        with portable():
            found = awq.quantise(network, token_rows(), grids_of(network, scheme), powers=5)
        assert set(found.quantised) == set(grids_of(network).by_layer)
        assert sum(one.chosen for one in found.losses.values()) < sum(
            one.nearest for one in found.losses.values()
        )

    def test_a_network_without_a_place_for_scales_is_refused(self):
        network = tiny_network()
        only = {
            name: grid
            for name, grid in grids_of(network).by_layer.items()
            if name.endswith("o_proj")
        }
        with portable(), pytest.raises(InvalidRecordError, match="no place for the scales"):
            awq.quantise(network, token_rows(), Grids(by_layer=only))


class TestSmoothQuant:
    def test_the_scale_is_that_of_the_paper_s_equation_4(self):
        """QUANT-84."""
        weights = {"a": torch.tensor([[1.0, -4.0], [0.5, 2.0]]), "b": torch.tensor([[0.25, 9.0]])}
        found = smoothquant.scale_of(torch.tensor([16.0, 4.0]), weights, Fraction(1, 2))
        torch.testing.assert_close(found, torch.tensor([4.0, 2 / 3]))

    @pytest.mark.parametrize("strength", [Fraction(1, 2), Fraction(4, 5), Fraction(1)])
    def test_the_largest_inputs_come_nearer_to_the_others(self, strength):
        """QUANT-84."""
        network, rows = uneven_network(), token_rows()
        grids = grids_of(network, "w8a8")
        with portable():
            plain = observing.quantise(network, rows, grids)
            smooth = smoothquant.quantise(network, rows, grids, strength=strength)
        assert len(smooth.folded) == 4
        assert all("norm" in name for name in smooth.folded)
        name = "model.layers.0.self_attn.q_proj"
        assert smooth.inputs[name] < plain.inputs[name]

    def test_the_network_with_its_scales_computes_what_it_did(self):
        """QUANT-80, for a whole network: scales in the norms, their inverses in the weights."""
        network = copy.deepcopy(tiny_network())
        row = torch.tensor([token_rows()[0]])
        with portable():
            before = network(input_ids=row).logits.detach()
            found = smoothquant.quantise(network, token_rows(), grids_of(network, "w8a8"))
            with torch.no_grad():
                for name, tensor in found.changed.items():
                    network.get_parameter(name).copy_(tensor)
                for name in found.quantised:
                    weight = network.get_submodule(name).weight
                    weight.copy_(found.scaled(name, weight))
            after = network(input_ids=row).logits.detach()
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


class TestClipping:
    """QUANT-83: a range is cut where the group's own outputs gain, and nowhere else."""

    @pytest.mark.parametrize("scheme", ["w4a16", "w4a16-asym", "nvfp4a16"])
    def test_no_group_gets_worse_and_some_get_better(self, scheme):
        block, grids = first_block(tiny_network()), grids_of(tiny_network(), scheme)
        weights = block.weights(block.stages[0].layers)
        gram = block.statistics(block.stages[0]).gram32()
        better = 0
        for name, chosen in clipped(grids, weights, gram).items():
            whole = grids.scales(weights)[name]
            group = whole.grid.group
            for at in range(0, len(gram), group):
                part = slice(at, at + group)
                cut, before = (
                    squared_outputs(
                        (values(nearest(weights[name], one)) - weights[name])[:, part],
                        gram[part, part],
                    )
                    for one in (chosen, whole)
                )
                assert bool((cut <= before * (1 + 1e-5)).all())
                better += int((cut < before).sum())
        assert better > 0

    def test_an_outlier_that_carries_nothing_is_cut_off(self):
        grid = Grid(kind="int", bits=4, group=8)
        weight = torch.linspace(-1, 1, 8)[None].clone()
        weight[0, 3] = 1.4
        gram = torch.eye(8)
        gram[3, 3] = 0.0
        grids = Grids(by_layer={"layer": grid})
        found = clipped(grids, {"layer": weight}, gram)["layer"]
        assert float(found.scale[0, 0]) < float(scales(weight, grid).scale[0, 0])


def test_rounding_to_nearest_with_calibration_is_rounding_to_nearest():
    """QUANT-78."""
    network = tiny_network()
    grids = grids_of(network)
    with portable():
        found = observing.quantise(network, token_rows(), grids)
    for name, matrix in found.quantised.items():
        weight = network.get_submodule(name).weight.data
        want = nearest(weight, scales(weight, grids.by_layer[name]))
        assert torch.equal(matrix.codes, want.codes)
        assert found.losses[name].chosen == found.losses[name].nearest
        assert found.inputs[name] > 0
