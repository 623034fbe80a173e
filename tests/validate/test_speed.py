"""How fast a case is measured, and in how much memory: each bound against the obvious way, in the same run."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from medcam.validate.measures import Settings
from medcam.validate.measuring import measure
from medcam.validate.ranked import Ranked, levels_of
from medcam.validate.scene import Scene

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SPACING = (1.0, 1.0, 1.2)


def case_of(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A map of 8 x 8 x 8 cells with a warm spot over noise, as Grad-CAM gives it, and a lesion beside the spot's middle."""
    cell = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1)
    coarse = np.exp(-((cell - np.array([3, 3, 2])) ** 2).sum(-1) / 4)
    coarse = coarse + 0.2 * np.random.default_rng(0).standard_normal((8, 8, 8))
    relevance = ndimage.zoom(coarse, side / 8, order=1, grid_mode=True, mode="nearest").astype(np.float32)
    lesion = np.zeros(relevance.shape, bool)
    part = side / 256
    lesion[
        round(90 * part) : round(130 * part), round(90 * part) : round(130 * part), round(60 * part) : round(100 * part)
    ] = True
    return np.maximum(relevance, 0), lesion


def seconds(work: Callable[[], object], times: int = 1) -> float:
    best = np.inf
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return float(best)


def loop(relevance: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """IoU, Dice, precision and recall at 100 thresholds as they are commonly written, one mask after the other."""
    table = np.zeros((4, 100))
    for n, level in enumerate(levels_of(float(relevance.max()))):
        mask = relevance >= level
        table[0, n] = np.logical_and(mask, lesion).sum() / np.logical_or(mask, lesion).sum()
        table[1, n] = 2 * np.logical_and(mask, lesion).sum() / (mask.sum() + lesion.sum())
        table[2, n] = np.logical_and(mask, lesion).sum() / mask.sum()
        table[3, n] = np.logical_and(mask, lesion).sum() / lesion.sum()
    return table


def one_pass(relevance: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The same table, and exact average precision, AUROC and best Dice beside it."""
    scene = Scene(relevance, lesion, SPACING)
    ranked = Ranked.of(scene)
    ranked.average_precision(), ranked.auroc(), ranked.best()
    both, selected = ranked.level_hits, ranked.level_hits + ranked.level_others
    union = selected + scene.lesion_voxels - both
    return np.stack([both / union, ranked.level_dice(), both / selected, both / scene.lesion_voxels])


def test_all_thresholds_of_a_large_case_come_from_one_pass_50_times_faster_than_a_loop() -> None:
    relevance, lesion = case_of(256)
    fast = seconds(lambda: one_pass(relevance, lesion), 3)
    slow = seconds(lambda: loop(relevance, lesion))
    print(f"loop {slow:.2f} s, one pass {fast:.3f} s: {slow / fast:.0f} times")
    np.testing.assert_allclose(one_pass(relevance, lesion), loop(relevance, lesion))
    assert slow >= 50 * fast


def test_a_map_of_noise_takes_longer_but_still_beats_the_loop_by_far() -> None:
    _, lesion = case_of(256)
    relevance = np.random.default_rng(0).random(lesion.shape, dtype=np.float32)
    fast = seconds(lambda: one_pass(relevance, lesion), 2)
    slow = seconds(lambda: loop(relevance, lesion))
    print(f"noise: loop {slow:.2f} s, one pass {fast:.3f} s: {slow / fast:.0f} times")
    assert slow >= 4 * fast


def test_a_case_is_measured_in_a_few_copies_of_its_map() -> None:
    relevance, lesion = case_of(128)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    measure(relevance, lesion, spacing_mm=SPACING, settings=Settings(draws=200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    copies = (peak - before) / relevance.nbytes
    print(f"{copies:.1f} copies")
    assert copies < 7
