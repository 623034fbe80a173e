"""Occlusion and RISE: explicit masks one by one, closed forms, and what is not looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.mask_studies import Counted, notes_of, one_of_batch, score, study_of
from engine.toy_networks import Classifier, image
from medcam.engine.baselines import baseline
from medcam.engine.perturbations import SoftMasks, draw_masks, occlusion, rise, windows_of
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 3]


class Linear(nn.Module):
    """A score for each of four classes, linear in the input; the layer is there because a study asks for one."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.weight = nn.Parameter(torch.randn(4, *x.shape[1:], dtype=x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bv,kv->bk", self.layer(x).flatten(1), self.weight.flatten(1)) + 0.7


def classifier(dims: int) -> tuple[nn.Module, Tensor]:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    with torch.no_grad():
        network.head.weight.mul_(20)
    return network, x


@DIMS
@pytest.mark.parametrize(("window", "stride", "kind"), [(4, 3, "mean"), (4, None, -1), ([3, 5, 2], [2, 5, 1], "min")])
def test_occlusion_is_the_clean_score_less_the_covered_one(
    dims: int, window: object, stride: object, kind: str | int
) -> None:
    network, x = classifier(dims)
    sides, steps = [n[:dims] if isinstance(n, list) else n for n in (window, stride)]
    found = occlusion(window=sides, stride=steps, baseline=kind).explain(
        study_of(network, x, CLASSES, "block", copies=100)
    )
    blanks = baseline(x, kind if isinstance(kind, str) else float(kind)).numpy()
    side = [sides] * dims if isinstance(sides, int) else sides
    step = [2] * dims if steps is None else [steps] * dims if isinstance(steps, int) else steps
    assert found.stride == tuple(step)
    for place in np.ndindex(*found.values.shape[1:]):
        if sum(place) % 3:  # not all of them, to be quick
            continue
        centre = [o + s * c for o, s, c in zip(found.offset, found.stride, place, strict=True)]
        near = [abs(np.arange(n) - m) <= (w - 1) / 2 for n, m, w in zip(x.shape[2:], centre, side, strict=True)]
        covered = np.logical_and.reduce(np.meshgrid(*near, indexing="ij"))
        for n, c in enumerate(CLASSES):
            drop = score(network, x[n].numpy(), c) - score(network, np.where(covered, blanks[n], x[n].numpy()), c)
            assert found.values[(n, *place)].item() == pytest.approx(drop, abs=1e-9)


@DIMS
def test_occlusion_of_a_linear_score_is_the_windows_share_of_it(dims: int) -> None:
    x = image(dims).double()
    network = Linear(x)
    found = occlusion(window=3, stride=2, baseline="mean").explain(study_of(network, x, CLASSES, "layer", copies=9))
    parts = network.weight[CLASSES] * (x - x.mean(tuple(range(2, x.ndim)), keepdim=True))
    windows = windows_of(tuple(x.shape[2:]), 3, 2)
    for place in np.ndindex(*windows.counts):
        share = parts[windows.box(place)].flatten(1).sum(1)
        torch.testing.assert_close(found.values[(slice(None), *place)], share.detach())


def hot(dims: int, voxel: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """One voxel of the first channel is the score of every class."""
    x = 1 + image(dims).double().abs()
    network = Linear(x)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[(slice(None), 0, *voxel)] = 2
    return network, x


@DIMS
def test_occlusion_finds_the_one_voxel_that_decides(dims: int) -> None:
    voxel = (7, 3, 5)[:dims]
    network, x = hot(dims, voxel)
    found = occlusion(window=3, stride=1, baseline="zero").explain(study_of(network, x, CLASSES, "layer", copies=90))
    for place in np.ndindex(*found.values.shape[1:]):
        near = all(abs(c + o - v) <= 1 for c, o, v in zip(place, found.offset, voxel, strict=True))
        expected = 2 * x[(slice(None), 0, *voxel)] if near else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(found.values[(slice(None), *place)], expected)


def test_a_window_is_an_eighth_of_each_side_by_default_and_its_stride_half_a_window() -> None:
    windows = windows_of((64, 47, 5), None, None)
    assert (windows.sides, windows.steps, windows.counts) == ((8, 6, 1), (4, 3, 1), (15, 15, 5))


@pytest.mark.parametrize("shape", [(1, 2), (11, 14, 9), (16, 5), (512, 512, 300)])
@pytest.mark.parametrize("side", [None, 1, 2, 5])
def test_windows_form_a_regular_grid_that_covers_every_voxel_and_hangs_over_evenly(
    shape: tuple[int, ...], side: int | None
) -> None:
    sides = None if side is None else [min(side, n) for n in shape]
    for steps in (None, 1, sides):
        windows = windows_of(shape, sides, steps)
        stride, offset = windows.cells
        for axis, n in enumerate(shape):
            covered, last = np.zeros(n, dtype=int), len(shape) * [0]
            for c in range(windows.counts[axis]):
                last[axis] = c
                box = windows.box(last)[1 + axis]
                covered[box] += 1
                assert box.stop > box.start
                inside = box.start > 0 and box.stop <= n
                assert not inside or (box.start + box.stop - 1) / 2 == offset[axis] + c * stride[axis]
            assert covered.min() > 0
            before, after = -windows.starts[axis], box.stop - n
            assert 0 <= before <= after <= before + 1
            assert after < windows.steps[axis]


def with_air(dims: int) -> Tensor:
    """Samples whose left part is air, further to the right in each."""
    x = image(dims).double().abs() + 0.1
    for n in range(3):
        x[n, :, :, : 4 + 2 * n] = -1
    x[0, 1, 2, 1] = 0.5  # not air in one channel
    return x


@DIMS
def test_windows_in_the_background_are_not_looked_at(dims: int) -> None:
    x = with_air(dims)
    counted = Counted(Linear(x))
    study = study_of(counted, x, CLASSES, "network.layer")
    counted.sizes.clear()
    found = occlusion(window=2, stride=2, background=-1).explain(study)
    every = occlusion(window=2, stride=2).explain(study_of(counted, x, CLASSES, "network.layer"))
    windows = windows_of(tuple(x.shape[2:]), 2, 2)
    empty = torch.zeros_like(found.values, dtype=torch.bool)
    for place in np.ndindex(*windows.counts):
        empty[(slice(None), *place)] = (x[windows.box(place)].flatten(1) <= -1).all(1)
    assert empty.any(tuple(range(1, dims + 1))).all()
    assert torch.equal(found.values.isnan(), empty)
    torch.testing.assert_close(found.values[~empty], every.values[~empty])
    assert sum(counted.sizes[: -(-int((~empty.all(0)).sum()) // 3)]) == int((~empty.all(0)).sum()) * 3
    for n in range(3):
        assert notes_of(study)[n] == [
            f"{int(empty[n].sum())} of {empty[n].numel()} windows hold no voxel above -1 and were not covered; the map has no value there."
        ]


def test_an_input_that_is_all_background_is_not_looked_at_anywhere() -> None:
    x = image(2)
    found = occlusion(background=1e9).explain(study_of(Linear(x), x, CLASSES, "layer"))
    assert found.values.isnan().all()


@DIMS
def test_maps_of_a_batch_are_those_of_its_samples_alone(dims: int) -> None:
    network, x = classifier(dims)
    x[:, :, :, :5] = with_air(dims)[:, :, :, :5]
    for method in (occlusion(window=4), occlusion(window=4, background=-1), rise(masks=7, cells=3, baseline="mean")):
        together = method.explain(study_of(network, x, CLASSES, "block"))
        alone = [method.explain(one_of_batch(network, x, CLASSES, n, "block")) for n in range(3)]
        torch.testing.assert_close(together.values, torch.cat([one.values for one in alone]), equal_nan=True)
        assert (together.stride, together.offset) == (alone[0].stride, alone[0].offset)


def one_by_one(masks: SoftMasks) -> Tensor:
    """Each mask by torch's own interpolation and a cut."""
    mode = {2: "bilinear", 3: "trilinear"}[len(masks.shape)]
    whole = [(c + 1) * -(-n // c) for n, c in zip(masks.shape, masks.grids.shape[1:], strict=True)]
    found = []
    for grid, shift in zip(masks.grids.double(), masks.shifts.long().tolist(), strict=True):
        wide = F.interpolate(grid[None, None], size=whole, mode=mode, align_corners=False)[0, 0]
        found.append(wide[tuple(slice(start, start + n) for start, n in zip(shift, masks.shape, strict=True))])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("shape", "cells"), [((11, 14), (7, 7)), ((11, 14, 9), (7, 7, 7)), ((11, 14, 9), (3, 1, 4)), ((5, 40), (9, 2))]
)  # fmt: skip
def test_masks_are_grids_enlarged_by_one_cell_more_and_cut_out_at_their_shift(
    shape: tuple[int, ...], cells: tuple[int, ...]
) -> None:
    masks = draw_masks(200, cells, shape, 0.4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(masks.at(slice(0, 20)).double(), one_by_one(masks)[:20], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masks.at(slice(5, 8)), masks.at(slice(0, 20))[5:8])
    sizes = [-(-n // c) for n, c in zip(shape, cells, strict=True)]
    assert all(set(masks.shifts[:, axis].tolist()) == set(range(size)) for axis, size in enumerate(sizes))
    assert set(masks.grids.unique().tolist()) == {0, 1}


def test_a_voxel_is_shown_with_the_given_probability_wherever_it_lies() -> None:
    masks = draw_masks(4000, (3, 4), (11, 14), 0.3, torch.Generator().manual_seed(0)).at(slice(0, 4000))
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    # Four standard deviations of a mean of 4000 draws.
    assert float((masks.mean(0) - 0.3).abs().max()) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@DIMS
@pytest.mark.parametrize(("estimator", "kind"), [("paper", "zero"), ("centred", "zero"), ("paper", "mean")])
def test_rise_is_the_papers_sum_over_its_masks(dims: int, estimator: str, kind: str) -> None:
    network, x = classifier(dims)
    count, cells = 9, (3, 4, 2)[:dims]
    masks = one_by_one(draw_masks(count, cells, tuple(x.shape[2:]), 0.4, torch.Generator().manual_seed(6))).numpy()
    blanks = baseline(x, kind).numpy()
    method = rise(masks=count, cells=cells, probability=0.4, estimator=estimator, baseline=kind)
    found = method.explain(study_of(network, x, CLASSES, "block", seed=6))
    assert (found.stride, found.offset) == ((1,) * dims, (0,) * dims)
    for n, c in enumerate(CLASSES):
        scores = [score(network, x[n].numpy() * m + blanks[n] * (1 - m), c) for m in masks]
        level = np.mean(scores) if estimator == "centred" else 0
        expected = sum((s - level) * m for s, m in zip(scores, masks, strict=True)) / (count * 0.4)
        np.testing.assert_allclose(found.values[n].numpy(), expected, rtol=1e-9, atol=1e-11)


@DIMS
def test_rise_finds_the_one_voxel_that_decides(dims: int) -> None:
    voxel = (7, 3, 5)[:dims]
    network, x = hot(dims, voxel)
    study = study_of(network, x.float(), CLASSES, "layer", copies=50) if network.float() else None
    found = rise(masks=1000, cells=4, estimator="centred").explain(study)
    for n in range(3):
        peak = np.unravel_index(int(found.values[n].argmax()), x.shape[2:])
        assert all(abs(p - v) <= 2 for p, v in zip(peak, voxel, strict=True))
    assert all("1000 random masks" in notes[0] for notes in notes_of(study))
    alike = [float(notes[0].split("correlate at ")[1].split(" ")[0]) for notes in notes_of(study)]
    assert min(alike) > 0.8


def test_rise_of_a_score_that_does_not_change_is_zero_where_centred() -> None:
    x = image(2)
    network = Linear(x)
    nn.init.zeros_(network.weight)
    found = rise(masks=40, estimator="centred").explain(study_of(network, x, CLASSES, "layer"))
    torch.testing.assert_close(found.values, torch.zeros_like(found.values))
    paper = rise(masks=400).explain(study_of(network, x, CLASSES, "layer", copies=100))
    assert float((paper.values - 0.7).abs().max()) < 0.15


def test_a_forward_for_each_mask_and_never_more_copies_than_allowed() -> None:
    x = image(2)
    for method, forwards in ((rise(masks=11), 11), (occlusion(window=[6, 7], stride=[5, 7]), 4)):
        counted = Counted(Linear(x))
        study = study_of(counted, x, CLASSES, "network.layer", copies=4)
        counted.sizes.clear()
        method.explain(study)
        assert sum(counted.sizes) == forwards * 3
        assert max(counted.sizes) == 4 * 3


@pytest.mark.parametrize("masks", [1, 2, 3, 30])
def test_any_number_of_masks_is_summed(masks: int) -> None:
    drawn = draw_masks(masks, (3, 2), (4, 5), 0.5, torch.Generator().manual_seed(1))
    weights = torch.randn(masks, 2)
    found = drawn.weighted_sum(weights[::2], 0) + drawn.weighted_sum(weights[1::2], 1)
    torch.testing.assert_close(found, torch.einsum("mb,mij->bij", weights, drawn.at(slice(0, masks))))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (occlusion, {"window": 0}, "window is a whole number of at least 1, not 0"),
        (occlusion, {"stride": [2, 0]}, "stride is a whole number"),
        (occlusion, {"baseline": "grey"}, "baseline is one of"),
        (rise, {"masks": 0}, "masks is a whole number"),
        (rise, {"cells": [7, 0]}, "cells is a whole number"),
        (rise, {"probability": 1}, "probability is a number between 0 and 1, not 1"),
        (rise, {"estimator": "mean"}, "estimator is one of 'paper', 'centred', not 'mean'"),
        (rise, {"baseline": "grey"}, "baseline is one of"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(make: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (occlusion(window=[3, 3, 3]), "window has 3 numbers, but the input has 2 axes"),
        (occlusion(window=[12, 3]), "a window of 12 x 3 voxels does not fit an input of 11 x 14"),
        (occlusion(window=3, stride=[3, 4]), "strides of 3 x 4 voxels leave gaps between windows of 3 x 3"),
        (rise(masks=2, cells=[7]), "cells has 1 numbers, but the input has 2 axes"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_input_are_refused(method: object, words: str) -> None:
    x = image(2)
    with pytest.raises(UsageError, match=words):
        method.explain(study_of(Linear(x), x, CLASSES, "layer"))
