"""Inpainting: against a direct solver on a matrix built voxel by voxel, and against the paper's weights."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from medcam.errors import ModelError, UsageError
from medcam.trials import inpainting
from medcam.trials.inpainting import inpainted, stencil


def direct(image: np.ndarray, removed: np.ndarray, spacing: tuple[float, ...], falloff: float) -> np.ndarray:
    filled = image.copy()
    filled[removed] = spsolve(*system(image, removed, spacing, falloff))
    return filled


def system(
    image: np.ndarray, removed: np.ndarray, spacing: tuple[float, ...], falloff: float
) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Every removed voxel in turn: its neighbours inside the image, by distance."""
    places = np.argwhere(removed)
    number = {tuple(place): n for n, place in enumerate(places)}
    rows, columns, entries, right = [], [], [], np.zeros(len(places))
    for n, place in enumerate(places):
        total = 0.0
        for step in product((-1, 0, 1), repeat=image.ndim):
            other = tuple(place + step)
            if not any(step) or any(not 0 <= o < side for o, side in zip(other, image.shape, strict=True)):
                continue
            weight = np.linalg.norm(np.multiply(step, spacing)) ** -falloff
            total += weight
            if other in number:
                rows.append(n), columns.append(number[other]), entries.append(-weight)
            else:
                right[n] += weight * image[other]
        rows.append(n), columns.append(n), entries.append(total)
    return sparse.csc_matrix((entries, (rows, columns)), shape=(len(places),) * 2), right


@pytest.mark.parametrize(
    ("shape", "spacing", "falloff"),
    [((9, 7, 5), (1.0, 1.0, 1.0), 1), ((8, 6, 7), (0.7, 0.7, 3.1), 1), ((13, 9), (1.0, 1.0), 2), ((11, 14), (0.5, 0.9), 1)],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_it_is_the_direct_solution(
    shape: tuple[int, ...], spacing: tuple[float, ...], falloff: int, share: float
) -> None:
    random = np.random.default_rng(0)
    images, removed = random.normal(100, 30, (3, 2, *shape)), random.random((3, *shape)) < share
    found = inpainted(
        torch.tensor(images, dtype=torch.float32), torch.tensor(removed), spacing_mm=spacing, falloff=falloff
    ).numpy()
    for n, c in product(range(3), range(2)):
        expected = direct(images[n, c], removed[n], spacing, falloff)
        np.testing.assert_allclose(found[n, c], expected, atol=30 * 2e-4)
        np.testing.assert_array_equal(found[n, c][~removed[n]], images[n, c].astype(np.float32)[~removed[n]])


def test_in_an_image_the_weights_are_the_papers() -> None:
    """A sixth for each edge, a twelfth for each corner."""
    image = torch.arange(9.0).reshape(1, 1, 3, 3) ** 2
    removed = torch.zeros(1, 3, 3, dtype=torch.bool)
    removed[0, 1, 1] = True
    edges, corners = (1 + 9 + 25 + 49) / 6, (0 + 4 + 36 + 64) / 12
    assert float(inpainted(image, removed)[0, 0, 1, 1]) == pytest.approx(edges + corners, rel=1e-5)


def test_in_a_volume_the_weights_are_one_over_the_distance_in_millimetres() -> None:
    weights = dict(stencil(3, (1.0, 2.0, 4.0), None))
    assert weights[1, 0, 0] / weights[0, 1, 0] == pytest.approx(2)
    assert weights[1, 0, 0] / weights[0, 0, 1] == pytest.approx(4)
    assert weights[1, 0, 0] / weights[1, 1, 1] == pytest.approx(np.sqrt(21))
    assert len(weights) == 13


def test_a_linear_ramp_is_continued_and_a_lone_sample_does_not_depend_on_its_batch() -> None:
    ramp = torch.linspace(-3, 5, 12)[:, None, None].expand(12, 9, 7)[None, None].contiguous()
    removed = torch.zeros(1, 12, 9, 7, dtype=torch.bool)
    removed[0, 3:9, 2:7, 2:5] = True
    torch.testing.assert_close(inpainted(ramp, removed), ramp, atol=2e-3, rtol=0)
    every = torch.ones_like(removed)
    every[0, 0, 0, 0] = False
    other = torch.cat([ramp, torch.randn_like(ramp)])
    # Another box is another order of summing.
    torch.testing.assert_close(
        inpainted(other, torch.cat([removed, every]))[:1], inpainted(ramp, removed), atol=1e-5, rtol=0
    )
    assert torch.equal(inpainted(other, torch.cat([removed, removed]))[:1], inpainted(ramp, removed))


def test_a_few_samples_at_a_time_are_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, removed = torch.randn(5, 2, 9, 7, 5), torch.rand(5, 9, 7, 5) < 0.6
    whole = inpainted(images, removed)
    monkeypatch.setattr(inpainting, "_VALUES", 2 * 2 * 9 * 7 * 5)
    assert torch.equal(inpainted(images, removed), whole)


def test_a_sample_of_which_nothing_is_left_becomes_its_mean_and_an_empty_mask_changes_nothing() -> None:
    image = torch.randn(2, 3, 6, 5, 4) + 40
    removed = torch.zeros(2, 6, 5, 4, dtype=torch.bool)
    assert inpainted(image, removed) is image
    removed[1] = True
    found = inpainted(image, removed)
    torch.testing.assert_close(found[1], image[1].mean((1, 2, 3), keepdim=True).expand_as(image[1]))
    torch.testing.assert_close(found[0], image[0])


def test_an_island_within_what_is_removed_is_kept_and_what_leaves_the_image_counts_nothing() -> None:
    image = torch.full((1, 1, 7, 6), 2.0)
    image[0, 0, 3, 3] = 8
    removed = torch.ones(1, 7, 6, dtype=torch.bool)
    removed[0, 3, 3] = False
    torch.testing.assert_close(inpainted(image, removed), torch.full_like(image, 8.0), atol=1e-3, rtol=0)


def test_what_cannot_be_filled_is_said() -> None:
    removed = torch.ones(1, 4, 5, dtype=torch.bool)
    removed[0, 0] = False
    image = torch.randn(1, 1, 4, 5)
    with pytest.raises(UsageError, match="2 axes"):
        inpainted(image, removed, spacing_mm=(1.0, 1.0, 1.0))
    image[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        inpainted(image, removed)


@pytest.mark.slow
def test_sixteen_thousand_voxels_are_filled_at_least_ten_times_faster_than_by_a_direct_solver() -> None:
    random = np.random.default_rng(0)
    volume = random.normal(size=(32, 32, 32))
    removed = (random.permutation(volume.size) < 16_400).reshape(volume.shape)
    images, masks = torch.tensor(volume, dtype=torch.float32)[None, None], torch.tensor(removed)[None]
    inpainted(images, masks)
    start = time.perf_counter()
    found = inpainted(images, masks)
    ours = time.perf_counter() - start
    matrix, right = system(volume, removed, (1.0, 1.0, 1.0), 1)
    start = time.perf_counter()
    expected = spsolve(matrix, right)
    theirs = time.perf_counter() - start
    np.testing.assert_allclose(found[0, 0].numpy()[removed], expected, atol=2e-4)
    assert theirs > 10 * ours
