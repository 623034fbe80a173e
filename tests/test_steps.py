"""A recipe's preprocessing says every parameter, the same in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import monai.transforms as mt
import numpy as np
import pytest
import torch

from conftest import blob, made_volume, oblique_grid
from medcam.prepare import prepare
from medcam.recipe import Recipe
from medcam.steps import step_words

GRID = oblique_grid((12, 15, 9), (2.0, 1.5, 3.0))
PROGRAM = """from medcam.steps import step_words
class Step:
    def __init__(self):
        self.keys, self.scale, self.inner = {"flair", "t1", "t2", "dwi"}, lambda x: 2 * x, object()
print(step_words(Step()))
"""


def test_what_a_transform_was_made_with_stands_in_its_words() -> None:
    words = step_words(mt.ScaleIntensityRanged("image", -57, 164, 0.25, 1.0, clip=True))
    assert words.startswith("ScaleIntensityRanged(")
    for part in ('keys=["image"]', "a_min=-57", "a_max=164", "b_min=0.25", "clip=true", "dtype=numpy.float32"):
        assert part in words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mt.Spacing((1, 2, 3)), mt.Spacing((1, 2, 4))),
        (mt.NormalizeIntensity(nonzero=True), mt.NormalizeIntensity(nonzero=False)),
        (mt.Lambda(lambda x: x * 2), mt.Lambda(lambda x: x * 3)),
        (mt.NormalizeIntensity(subtrahend=np.ones(100)), mt.NormalizeIntensity(subtrahend=np.zeros(100))),
        (mt.EnsureType(dtype=torch.float32), mt.EnsureType(dtype=torch.float64)),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
    ],
)
def test_what_differs_in_a_parameter_differs_in_words(one: object, other: object) -> None:
    assert step_words(one) != step_words(other)
    assert " at 0x" not in step_words(one)


def test_a_path_is_told_by_its_last_part() -> None:
    class Masked:
        def __init__(self, mask: str | Path) -> None:
            self.mask = mask

    assert step_words(Masked("/home/somebody/atlas.nii.gz")) == step_words(Masked(Path("/srv/atlas.nii.gz")))
    assert step_words(Masked("/home/somebody/atlas.nii.gz")) == 'Masked(mask="atlas.nii.gz")'


def test_every_run_says_the_same() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }
    assert len(said) == 1
    assert 'keys=["dwi", "flair", "t1", "t2"]' in said.pop()


@pytest.mark.filterwarnings("ignore:.*labels:FutureWarning")
def test_a_recipe_holds_the_parameters_and_comes_back_from_json() -> None:
    chain = mt.Compose(
        [mt.Spacingd("image", (2.0, 2.0, 2.0)), mt.CropForegroundd("image", "image"), mt.ScaleIntensityd("image")]
    )
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([5.0, 6.0, 4.0]))), GRID)
    first, again = (prepare([volume], chain, spatial_dims=3).steps for _ in range(2))
    assert first == again
    assert "pixdim=[2.0, 2.0, 2.0]" in first[0]
    recipe = Recipe("net", "ab", "grad-cam", "features", "lesion", preprocessing=first)
    assert Recipe.from_json(recipe.to_json()).preprocessing == first
