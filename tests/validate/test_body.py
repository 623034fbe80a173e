"""The body in a volume, and masks that do not lie in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medcam.validate.body import body, contrast, fit, mirrored


def head(shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    """An egg of tissue off the middle, with a dark cavity and a bright lesion at one side, in noisy air."""
    rng = np.random.default_rng(0)
    i, j, k = np.indices(shape)
    egg = ((i - 18) / 13) ** 2 + ((j - 25) / 18) ** 2 + ((k - 14) / 11) ** 2 < 1
    cavity = ((i - 18) / 4) ** 2 + ((j - 25) / 5) ** 2 + ((k - 14) / 3) ** 2 < 1
    image = np.where(egg & ~cavity, 100.0, 0.0) + rng.rayleigh(4, shape)
    image[lesion(shape)] += 60
    return image.astype(np.float32)


def lesion(shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    i, j, k = np.indices(shape)
    return ((i - 10) / 3) ** 2 + ((j - 20) / 4) ** 2 + ((k - 10) / 3) ** 2 < 1


def test_the_body_is_what_is_no_air_with_its_holes_filled() -> None:
    i, j, k = np.indices((40, 48, 36))
    egg = ((i - 18) / 13) ** 2 + ((j - 25) / 18) ** 2 + ((k - 14) / 11) ** 2 < 1
    found = body(head())
    assert found is not None
    both = np.count_nonzero(found & egg)
    assert 2 * both / (found.sum() + egg.sum()) > 0.98
    ct = np.where(egg, -50.0, -1000.0).astype(np.float32)
    np.testing.assert_array_equal(body(ct, unit="HU"), ndimage.binary_opening(egg) | egg)


def test_no_body_is_claimed_of_films_or_without_air() -> None:
    assert body(np.ones((20, 30, 1), np.float32)) is None
    assert body(np.random.default_rng(0).normal(100, 5, (12, 14, 10))) is None
    assert body(np.zeros((12, 14, 10))) is None


def test_a_mask_outside_the_body_is_told_apart_from_one_within() -> None:
    inside = body(head())
    assert inside is not None
    mask = lesion()
    right = fit(mask, inside)
    assert right.outside == 0
    assert right.doubt(["i", "j", "k"]) == ""
    assert fit(np.roll(mask, 14, 2) & False, inside).doubt(["i", "j", "k"]) == ""
    flipped = fit(mask[:, :, ::-1], inside)
    assert flipped.outside == pytest.approx(1 - np.count_nonzero(mask[:, :, ::-1] & inside) / mask.sum())
    assert flipped.flipped[2] == 0
    assert "mirrored along k" in flipped.doubt(["along i", "along j", "along k"])
    away = np.zeros_like(mask)
    away[-4:, -4:, -4:] = True
    assert fit(away, inside).elsewhere


def test_a_mirrored_mask_fits_what_is_seen_only_when_mirrored_back() -> None:
    image, mask = head(), lesion()
    assert contrast(image, mask) > 0.95
    assert mirrored(image, mask) is None
    for axis in (0, 1):
        assert mirrored(image, np.flip(mask, axis)) == axis
    assert mirrored(np.random.default_rng(0).normal(size=mask.shape), mask) is None
    assert np.isnan(contrast(image, mask & False))


def test_contrast_is_the_area_under_the_roc_curve_of_brightness() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 9, (15, 13, 11)).astype(np.float64)
    mask = np.zeros(image.shape, bool)
    mask[5:8, 4:9, 3:6] = True
    image[mask] += 2
    rim = ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=3) & ~mask
    pairs = image[mask][:, None] - image[rim][None]
    assert contrast(image, mask) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
