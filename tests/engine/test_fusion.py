"""Cells by their place in the input: interpolation, maps of several layers fused, maps of flipped inputs averaged."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcam.engine import cells as cells_room
from medcam.engine.augment import augmented
from medcam.engine.cells import Cells, at_positions, resampled
from medcam.engine.fusion import FUSIONS, fuse
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
EVERY_FUSION = pytest.mark.parametrize("how", sorted(FUSIONS))
# Number of cells, stride and offset along each axis; none lies evenly in the input of 29 x 23 x 31.
SIZE = (29, 23, 31)
LATTICES = [
    ((8, 6, 7), (4.0, 4.0, 5.0), (0.5, 1.5, -1.0)),
    ((14, 12, 16), (2.0, 2.0, 2.0), (1.0, -0.5, 0.5)),
    ((29, 22, 30), (1.0, 1.0, 1.0), (0.0, 0.5, 1.0)),
]


def sampled(function: Any, lattice: tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]], dims: int) -> Cells:
    """What a function of the input index (`dims` arrays) is at the centres of a lattice's cells."""
    shape, stride, offset = (part[:dims] for part in lattice)
    axes = [o + s * torch.arange(n, dtype=torch.float64) for n, s, o in zip(shape, stride, offset, strict=True)]
    return Cells(function(*torch.meshgrid(*axes, indexing="ij")), stride, offset)


def interp(values: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda row: np.interp(positions, np.arange(len(row)), row), axis, values)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_interpolation_is_linear_between_cells_and_constant_beyond(axis: int, n: int) -> None:
    shape = [3, 4, 2]
    shape[axis] = n
    values = torch.randn(shape, dtype=torch.float64)
    positions = np.array([-3.0, -0.2, 0, 0.3, 0.5, 0.999, 1, 1.7, 3.25, 4, 4.1, 99])
    found = at_positions(values, axis, positions.tolist())
    np.testing.assert_allclose(found.numpy(), interp(values.numpy(), axis, positions), rtol=1e-12)


def test_a_cell_that_was_not_looked_at_hides_no_more_than_its_neighbourhood() -> None:
    values = torch.tensor([[0.0, 1, torch.nan, 3]])
    found = at_positions(values, 1, [0.5, 1.0, 1.5, 2.5, 3.0, 4.0])
    assert found.isnan().tolist() == [[False, False, True, True, False, False]]


def test_interpolation_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Cells(torch.randn(2, 5, 4, 6), (2.0, 3.0, 1.5), (0.5, -1.0, 2.0))
    expected = resampled(cells, (11, 13, 9), stride=(1.0,) * 3, offset=(0.0,) * 3)
    monkeypatch.setattr(cells_room, "_PART_CPU", 50)
    torch.testing.assert_close(resampled(cells, (11, 13, 9), stride=(1.0,) * 3, offset=(0.0,) * 3), expected)


@DIMS
def test_a_linear_map_stays_what_it_was_on_every_lattice(dims: int) -> None:
    slopes = (2.0, -3.0, 0.5)[:dims]

    def ramp(*index: Tensor) -> Tensor:
        return sum(s * i for s, i in zip(slopes, index, strict=True))[None]

    for one, other in itertools.permutations(LATTICES, 2):
        shape, stride, offset = (part[:dims] for part in other)
        found = resampled(sampled(ramp, one, dims), shape, stride=stride, offset=offset)
        expected = sampled(ramp, other, dims).values
        inside = torch.ones_like(expected, dtype=torch.bool)
        for axis in range(dims):
            place = offset[axis] + stride[axis] * torch.arange(shape[axis])
            first, last = one[2][axis], one[2][axis] + one[1][axis] * (one[0][axis] - 1)
            inside &= ((place >= first) & (place <= last)).reshape(-1, *(1,) * (dims - 1 - axis))
        assert inside.float().mean() > 0.5
        torch.testing.assert_close(found[inside], expected[inside])


def maps(dims: int, batch: int = 3) -> list[Cells]:
    return [
        Cells(torch.randn(batch, *shape[:dims], dtype=torch.float64) * 10**power, stride[:dims], offset[:dims])
        for power, (shape, stride, offset) in zip((3, -2, 0), LATTICES, strict=True)
    ]


def fused_by_loops(how: str, given: list[Cells], size: tuple[int, ...] | None) -> np.ndarray:
    """Each map scaled, interpolated onto the last one's cells (or the input), then fused voxel by voxel; coarsest first."""
    dims, last = len(given[0].stride), given[-1]
    shape = size or last.shape
    centres = [np.arange(n) if size else last.offset[a] + last.stride[a] * np.arange(n) for a, n in enumerate(shape)]
    result = np.zeros((given[0].values.shape[0], *shape))
    for n in range(len(result)):
        placed = []
        for cells in given:
            values = cells.values[n].numpy() / cells.values[n].abs().max().item()
            for axis in range(dims):
                values = interp(values, axis, (centres[axis] - cells.offset[axis]) / cells.stride[axis])
            placed.append(values)
        for p in np.ndindex(*shape):
            at = [float(values[p]) for values in placed]
            together = 1 if all(v > 0 for v in at) else -1 if all(v < 0 for v in at) else 0
            result[(n, *p)] = {
                "mean": sum(at) / len(at),
                "max": max(at),
                "product": together * abs(np.prod(at)),
                "layer-cam": max(np.tanh(2 * v) for v in at),
                "coarse-to-fine": together * abs(at[0]) * np.prod([np.tanh(2 * abs(v)) for v in at[1:]]),
            }[how]
    return result


@DIMS
@EVERY_FUSION
@pytest.mark.parametrize("at_input", [False, True])
def test_a_fusion_is_its_definition(dims: int, how: str, at_input: bool) -> None:
    given = [Cells(cells.values[:, :5, :4], cells.stride, cells.offset) for cells in maps(dims)]
    size = (7, 6, 8)[:dims] if at_input else None
    expected = fused_by_loops(how, given, size)
    for order in ((0, 1, 2), (2, 0, 1)):
        found = fuse([given[i] for i in order], how, input_shape=size)
        np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-9, atol=1e-12)
        assert (
            (found.stride, found.offset) == ((1.0,) * dims, (0.0,) * dims)
            if at_input
            else (given[2].stride, given[2].offset)
        )


@DIMS
@EVERY_FUSION
@pytest.mark.parametrize("at_input", [False, True])
def test_the_fused_peak_lies_within_half_a_voxel_of_where_it_is(dims: int, how: str, at_input: bool) -> None:
    """The spot lies on a centre of the coarsest cells, so that each map alone knows its place."""
    spot = [offset + stride * 3 for _, stride, offset in zip(*LATTICES[0], strict=True)][:dims]

    def blob(*index: Tensor) -> Tensor:
        squared = sum((i - s) ** 2 for s, i in zip(spot, index, strict=True))
        return torch.exp(-squared / (2 * 5.0**2))[None] - 0.1

    given = [sampled(blob, lattice, dims) for lattice in LATTICES]
    found = fuse(given, how, input_shape=SIZE[:dims] if at_input else None)
    peak = np.unravel_index(int(found.values[0].argmax()), found.shape)
    place = np.array(found.offset) + np.array(found.stride) * peak
    assert (np.abs(place - spot) <= 0.5).all()


@EVERY_FUSION
def test_a_sample_is_fused_as_if_alone_and_its_unit_does_not_matter(how: str) -> None:
    given = maps(2)
    together = fuse(given, how).values
    for n in range(3):
        alone = [Cells(cells.values[n : n + 1] * 7**n, cells.stride, cells.offset) for cells in given]
        torch.testing.assert_close(fuse(alone, how).values[0], together[n])
    assert together.abs().max() <= 1


@EVERY_FUSION
def test_a_map_of_zeros_stays_one_and_nan_stays_nan(how: str) -> None:
    one = maps(2)[2]
    one.values[0], one.values[1, 3, 2] = 0, torch.nan
    found = fuse([one, Cells(one.values / 2, one.stride, one.offset)], how).values
    one.values[1, 3, 2] = 0
    others = fuse([one, one], how).values
    torch.testing.assert_close(found[found.isfinite()], others[found.isfinite()])
    assert (found[0] == 0).all()
    assert found[1, 3, 2].isnan()
    assert found.isnan().sum() == 1


def test_a_product_keeps_only_what_all_layers_say_and_a_gate_keeps_the_coarse_maps_inside() -> None:
    """A coarse map that is broad, and a finer one that is weaker within the object and nothing outside it."""
    coarse = Cells(torch.tensor([[[1.0, 1, 1, 1, -1]]]), (2.0, 2.0), (0.0, 0.0))
    fine = Cells(torch.tensor([[[0.0, 0.6, 1, -1, -0.6]]]), (1.0, 2.0), (0.0, 0.0))
    product, gated = (fuse([fine, coarse], how).values for how in ("product", "coarse-to-fine"))
    torch.testing.assert_close(product, torch.tensor([[[0, 0.6, 1, 0, -0.6]]]))
    inside = torch.tensor([1.2, 2.0]).tanh()
    torch.testing.assert_close(gated, torch.tensor([[[0, *inside, 0, -inside[0]]]]))
    assert gated[0, 0, 1] / gated[0, 0, 2] > 0.85


@pytest.mark.parametrize(
    ("given", "how", "words"),
    [
        ([], "mean", "at least one layer"),
        (maps(2), "median", "by mean, max"),
        ([maps(2)[0], maps(3)[0]], "mean", "same axes"),
    ],
)
def test_maps_that_do_not_fuse_are_refused(given: list[Cells], how: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fuse(given, how)


def explain_ramp(inputs: Tensor, _flip: tuple[int, ...]) -> Cells:
    """A layer that sees the input at every third index from the second on, so its cells do not lie in the middle."""
    dims = inputs.ndim - 2
    step = (slice(None), 0, *(slice(1, None, 3),) * dims)
    return Cells(inputs[step], (3.0,) * dims, (1.0,) * dims)


@DIMS
def test_maps_of_flipped_inputs_lie_where_they_did(dims: int) -> None:
    size = (12, 9, 14)[:dims]  # flipped, the cells of the last axis fall between their own places
    index = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")
    image = torch.stack([s * sum((a + 1) * i for a, i in enumerate(index)) for s in (1, -2)])[:, None]
    found = augmented(explain_ramp, image, flips=[(0,), (dims - 1,), tuple(range(dims))])
    plain = explain_ramp(image, ())
    assert (found.stride, found.offset) == (plain.stride, plain.offset)
    inner = (slice(None), *(slice(1, -1),) * dims)
    torch.testing.assert_close(found.values[inner], plain.values[inner])


def test_each_version_is_told_its_flip_and_counts_the_same() -> None:
    seen = []

    def explain(inputs: Tensor, flip: tuple[int, ...]) -> Cells:
        seen.append((flip, inputs[0, 0, 0, 0].item()))
        return Cells(inputs[:, 0] * (10 if flip else 1), (1.0, 1.0), (0.0, 0.0))

    image = torch.tensor([[[[1.0, 2], [3, 4]]]])
    found = augmented(explain, image, factors=(1.0, 0.5))
    assert seen == [((), 1), ((), 0.5), ((0,), 3), ((0,), 1.5), ((1,), 2), ((1,), 1)]
    torch.testing.assert_close(found.values, image[:, 0] * (1 + 0.5 + 2 * (10 + 5)) / 6)


@pytest.mark.parametrize("options", [{"flips": [(2,)]}, {"flips": [(-1,)]}, {"factors": ()}])
def test_a_flip_of_an_axis_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="axes 0 to 1"):
        augmented(explain_ramp, torch.zeros(1, 1, 6, 6), **options)
