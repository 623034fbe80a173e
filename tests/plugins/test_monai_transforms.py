"""A heatmap in somebody else's Compose: MONAI's own inverse and its own writer must put it where `medcam.explain` puts it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from test_pipeline import BrightestCell
from torch import nn

import medcam
from conftest import blob, made_volume, oblique_grid
from engine.toy_networks import Classifier, Segmenter, image
from formats.dicom_phantom import GEOMETRIES, write_series
from medcam.engine import EXPLAINERS, relevances
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import UsageError
from medcam.geometry import Grid
from medcam.lesion_net import LesionNet
from medcam.models import wrap_module
from medcam.plugins.maps import RECIPES, recipes_of
from medcam.plugins.transforms import Explain, Explaind, HeatmapToMask, HeatmapToMaskd
from medcam.volume import Heatmap

GRID = oblique_grid((40, 44, 30), (1.2, 1.0, 2.0))
PLACES = [(8.0, 30.0, 6.0), (25.0, 12.0, 21.0), (31.0, 35.0, 14.0)]
CROP = mt.CropForegroundd("image", source_key="image", select_fn=lambda x: x > 1e-4, margin=3)
CHAINS = {
    "turned, resampled, padded": [
        mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5)), mt.SpatialPadd("image", (48, 52, 56)),
    ],
    "cropped, resized, flipped": [CROP, mt.Resized("image", (40, 36, 44)), mt.Flipd("image", 1)],
    "all of it": [
        mt.Orientationd("image", "PLI"), mt.Spacingd("image", (1.5, 1.2, 1.5)), CROP, mt.Resized("image", (40, 36, 44)),
        mt.Flipd("image", 0), mt.Rotate90d("image"), mt.SpatialPadd("image", (48, 48, 48)),
    ],
}  # fmt: skip


def reading() -> list[Any]:
    return [mt.LoadImaged("image"), mt.EnsureChannelFirstd("image")]


def stored(folder: Path, place: tuple[float, ...], name: str = "case") -> Path:
    """A NIfTI file with one bright spot."""
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(blob(GRID, GRID.world_mm(np.array(place)), 3.0), GRID.affine), path)
    return path


def saved(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels and the affine of the one file there, read by nibabel."""
    (path,) = folder.iterdir()
    image = nibabel.load(path)
    return image.get_fdata(), image.affine


def hottest_mm(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    index = np.unravel_index(int(voxels.argmax()), voxels.shape)
    return affine[:3, :3] @ np.array(index) + affine[:3, 3]


@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("place", PLACES[::2])
def test_invertd_and_save_imaged_put_the_heatmap_where_medcam_explain_puts_it(
    steps: list[Any], place: tuple[float, ...], tmp_path: Path
) -> None:
    path = stored(tmp_path, place)
    network = BrightestCell().eval()
    before = mt.Compose([*reading(), *steps])
    after = mt.Compose(
        [
            Explaind("image", network, targets=1),
            mt.Invertd("image_heatmap", before, "image", nearest_interp=False),
            mt.SaveImaged(
                "image_heatmap",
                output_dir=tmp_path / "out",
                output_postfix="heatmap",
                separate_folder=False,
                print_log=False,
            ),
        ]
    )
    with torch.no_grad():
        after(before({"image": path}))
    voxels, affine = saved(tmp_path / "out")
    known = medcam.explain(medcam.read(path), network, target=1, preprocessing=mt.Compose(steps))
    peak = known.peak()
    assert peak is not None
    np.testing.assert_allclose(affine, GRID.affine, atol=1e-5)
    assert voxels.shape == GRID.shape
    seen = np.isfinite(known.relevance)
    # Interpolated twice instead of once, so its peak is lower and blunter, but nowhere else.
    assert np.corrcoef(voxels[seen], known.relevance[seen])[0, 1] > 0.99
    assert np.linalg.norm(hottest_mm(voxels, affine) - np.array(peak.world_mm)) <= np.linalg.norm(GRID.spacing_mm)


@pytest.mark.parametrize("geometry", ["oblique", "sagittal", "against the normal"])
def test_of_a_dicom_series_both_ways_point_at_the_same_place(geometry: str, tmp_path: Path) -> None:
    grid = Grid((29, 24, 18), GEOMETRIES[geometry])
    spot = grid.world_mm(np.array([18.0, 8.0, 11.0]))
    write_series(tmp_path / "study", (1000 * blob(grid, spot, 5.0)).astype(np.int16), grid.affine)
    network = BrightestCell().eval()
    steps = [
        mt.Orientationd("image", "RAS"),
        mt.Spacingd("image", (1.5, 1.5, 1.5)),
        mt.ScaleIntensityd("image"),
        mt.Resized("image", (32, 36, 28)),
    ]
    loading = [mt.LoadImaged("image", reader="PydicomReader"), mt.EnsureChannelFirstd("image")]
    before = mt.Compose([*loading, *steps])
    after = mt.Compose(
        [Explaind("image", network, targets=1), mt.Invertd("image_heatmap", before, "image", nearest_interp=False)]
    )
    found = after(before({"image": str(tmp_path / "study")}))["image_heatmap"]
    known = medcam.explain(medcam.read(tmp_path / "study"), network, target=1, preprocessing=mt.Compose(steps)).peak()
    assert known is not None
    place = hottest_mm(found[0].numpy(), found.affine.numpy())
    assert np.linalg.norm(place - np.array(known.world_mm)) <= np.linalg.norm(grid.spacing_mm)
    assert np.linalg.norm(place - spot) <= 0.5 * 6 * np.sqrt(3)


def test_a_stretched_map_would_lie_elsewhere() -> None:
    # What the test above must be able to tell: cells of 4 voxels centred on 0, 4, 8, as of two strided convolutions.
    network = nn.Sequential(
        nn.Conv3d(1, 2, 3, 2, 1), nn.Conv3d(2, 2, 3, 2, 1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    ).eval()
    given = torch.rand(1, 24, 20, 28, generator=torch.Generator().manual_seed(1))
    (found,) = relevances(network, given.unsqueeze(0), targets=[0], layers=["1"])
    heatmap = Explain(network, targets=0, layers="1")(given)
    cells = heatmap[0, ::4, ::4, ::4]
    torch.testing.assert_close(cells, found.values[0])
    stretched = nn.functional.interpolate(found.values.unsqueeze(0), (24, 20, 28), mode="trilinear")[0]
    assert (heatmap - stretched).abs().max() > 0.1 * heatmap.abs().max()


def test_a_random_affine_of_the_user_is_inverted_too(tmp_path: Path) -> None:
    path = stored(tmp_path, PLACES[1])
    turn = mt.RandAffined("image", prob=1.0, rotate_range=(0.2, 0.3, 0.1), scale_range=(0.1,) * 3, padding_mode="zeros")
    before = mt.Compose([*reading(), mt.Spacingd("image", (1.5, 1.5, 1.5)), turn]).set_random_state(4)
    after = mt.Compose(
        [
            Explaind("image", BrightestCell().eval(), targets=1),
            mt.Invertd("image_heatmap", before, "image", nearest_interp=False),
        ]
    )
    found = after(before({"image": path}))["image_heatmap"]
    np.testing.assert_allclose(found.affine, GRID.affine, atol=1e-5)
    # Half a cell of 6 mm along each axis, and a voxel for each of two interpolations.
    apart = hottest_mm(found[0].numpy(), GRID.affine) - GRID.world_mm(np.array(PLACES[1]))
    assert np.linalg.norm(apart) <= 0.5 * 6 * np.sqrt(3) + 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_explained_after_decollating_as_each_sample_alone(workers: int, tmp_path: Path) -> None:
    cases = [{"image": stored(tmp_path, place, f"case{n}")} for n, place in enumerate(PLACES)]
    before = mt.Compose(
        [
            *reading(),
            mt.Orientationd("image", "RAS"),
            mt.Spacingd("image", (1.5, 1.5, 1.5)),
            mt.Resized("image", (32, 36, 28)),
        ]
    )
    explain = Explaind("image", BrightestCell().eval(), targets=1)
    invert = mt.Invertd("image_heatmap", before, "image", nearest_interp=False)
    alone = [invert(explain(before(case)))["image_heatmap"] for case in cases]
    loader = DataLoader(Dataset(cases, before), batch_size=3, num_workers=workers)
    together = [invert(explain(sample)) for batch in loader for sample in decollate_batch(batch)]
    for mine, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(mine.as_tensor(), theirs["image_heatmap"].as_tensor())
    assert [Path(sample["image_heatmap"].meta["filename_or_obj"]).name for sample in together] == [
        f"case{n}.nii.gz" for n in range(3)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_it_may_stand_in_the_dataset_and_be_collated_with_its_recipes(workers: int, tmp_path: Path) -> None:
    cases = [{"image": stored(tmp_path, place, f"case{n}")} for n, place in enumerate(PLACES[:2])]
    chain = mt.Compose(
        [
            *reading(),
            mt.Resized("image", (32, 36, 28)),
            Explaind("image", BrightestCell().eval(), methods=["grad-cam", "hires-cam"]),
        ]
    )
    # The process that makes workers has used gradients itself, which a forked child must stand.
    alone = [chain(case) for case in cases]
    (batch,) = DataLoader(Dataset(cases, chain), batch_size=2, num_workers=workers)
    assert batch["image_heatmap"].shape == (2, 2, 32, 36, 28)
    for one, sample in zip(alone, decollate_batch(batch), strict=True):
        torch.testing.assert_close(one["image_heatmap"].as_tensor(), sample["image_heatmap"].as_tensor())
        assert recipes_of(sample["image_heatmap"].meta[RECIPES]) == recipes_of(sample["image_heatmap_recipes"])
        assert [recipe.method for recipe in recipes_of(sample["image_heatmap_recipes"])] == ["grad-cam", "hires-cam"]


def network_for(method: str) -> nn.Module:
    """A network that the method is defined for."""
    if method.startswith("seg-"):
        return Segmenter(2).eval()
    if method == "cam":
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()
    return Classifier(2).eval()


@pytest.mark.parametrize("method", EXPLAINERS)
def test_every_method_of_the_engine_answers_by_its_name(method: str) -> None:
    method = {"rise": "rise(masks=60)", "smoothgrad": "smoothgrad(samples=4)"}.get(method, method)
    network, given = network_for(method), image(2)[0]
    heatmap = Explain(network, methods=method, targets=1)(given)
    (known,) = relevances(network, given.unsqueeze(0), methods=[method], targets=[1])
    torch.testing.assert_close(heatmap, known.on_input().nan_to_num(0.0))
    assert heatmap.shape == (1, *given.shape[1:])


def test_there_is_a_channel_for_each_target_method_and_layer_in_this_order() -> None:
    network, given = Classifier(3).eval(), image(3)[0]
    methods, layers = ["grad-cam", "layer-cam"], [name for name, _ in network.named_modules() if name][:2]
    names = ["one", "two", "three"]
    explain = Explaind("ct", network, methods=methods, targets=["two", 0], layers=layers, class_names=names)
    found = explain({"ct": MetaTensor(given)})
    recipes = recipes_of(found["ct_heatmap_recipes"])
    assert [(r.target, r.method, r.layer) for r in recipes] == [
        (target, method, layer)
        for target in ("two (class 1)", "one (class 0)")
        for method in methods
        for layer in layers
    ]
    known = relevances(network, given.unsqueeze(0), methods=methods, targets=[1, 0], layers=layers)
    torch.testing.assert_close(found["ct_heatmap"].as_tensor(), torch.cat([one.on_input() for one in known]))


def test_the_recipe_tells_what_was_done_and_is_plain_text(tmp_path: Path) -> None:
    chain = mt.Compose(
        [
            *reading(),
            mt.Orientationd("image", "RAS"),
            mt.Resized("image", (32, 36, 28)),
            Explaind("image", BrightestCell().eval()),
        ]
    )
    found = chain({"image": stored(tmp_path, PLACES[0])})
    (recipe,) = recipes_of(found["image_heatmap"].meta[RECIPES])
    assert recipe.preprocessing == ("Orientation", "Resize")
    assert (recipe.model, recipe.method, recipe.stride, recipe.offset) == (
        "BrightestCell",
        "grad-cam",
        (4.0,) * 3,
        (1.5,) * 3,
    )
    assert recipe.input_shape == (32, 36, 28)
    assert recipe.versions["medcam"] == medcam.__version__
    assert "case" not in json.dumps(recipe.to_json())
    assert RECIPES not in found["image"].meta


def test_sliding_windows_are_those_of_the_users_own_inferer() -> None:
    network = LesionNet(3, (2, 3), dilations=(1, 1)).eval()
    given = torch.rand(1, 20, 24, 28, generator=torch.Generator().manual_seed(3))
    inferer = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
    heatmap = Explain(network, targets=0, inferer=inferer)(given)
    known = windowed_relevances(network, given.unsqueeze(0), Windows((16, 16, 16), 0.5), targets=[0])
    torch.testing.assert_close(heatmap, known.relevances[0].on_input())
    with pytest.raises(UsageError, match="exact means something for sliding windows only"):
        Explain(network, exact=True)


def test_a_model_that_names_its_windows_is_seen_through_them_and_an_ensemble_is_not_taken_for_one_network() -> None:
    network = LesionNet(3, (2, 3), dilations=(1, 1)).eval()
    given = torch.rand(1, 20, 24, 28, generator=torch.Generator().manual_seed(3))
    model = replace(wrap_module(network), windows={"roi_size": (16, 16, 16), "overlap": 0.5})
    inferer = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
    torch.testing.assert_close(Explain(model)(given), Explain(network, inferer=inferer)(given))
    torch.testing.assert_close(Explain(model, inferer=SimpleInferer())(given), Explain(network)(given))
    with pytest.raises(UsageError, match="the mean of 2 networks"):
        Explain(replace(model, members=("first", "second")))(given)


def test_it_works_in_a_film_in_inference_mode_and_leaves_the_network_as_it_was() -> None:
    network = Classifier(2).eval()
    weights = copy.deepcopy(network.state_dict())
    film = MetaTensor(image(2)[0], affine=np.diag([0.3, 0.7, 1, 1]))
    known = Explain(network)(film)
    with torch.inference_mode():
        found = Explain(network)(film * 1)
    torch.testing.assert_close(found.as_tensor().clone(), known.as_tensor())
    assert isinstance(found, MetaTensor)
    np.testing.assert_array_equal(known.affine, film.affine)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_a_batch_and_a_sample_of_other_axes_are_refused_in_words() -> None:
    network = Classifier(2).eval()
    batch = MetaTensor(image(2))
    batch.is_batch = True
    with pytest.raises(UsageError, match="decollate_batch"):
        Explain(network)(batch)
    with pytest.raises(UsageError, match="2 spatial axes"):
        Explain(network)(image(3)[0])


def test_a_missing_key_is_an_error_unless_it_may_be_missing() -> None:
    network = Classifier(2).eval()
    assert Explaind("film", network, allow_missing_keys=True)({"other": 1}) == {"other": 1}
    with pytest.raises(KeyError, match="film"):
        Explaind("film", network)({"other": 1})


def test_a_mask_of_the_hottest_part_is_that_of_a_heatmap() -> None:
    grid = Grid((5, 7, 3), GRID.affine)
    values = np.random.default_rng(2).normal(size=(3, *grid.shape)).astype(np.float32)
    values[1] = -np.abs(values[1])
    values[2, 0] = np.nan
    volume = made_volume(values[0], grid)
    (recipe,) = recipes_of(Explaind("i", Classifier(2).eval())({"i": MetaTensor(image(2)[0])})["i_heatmap_recipes"])
    known = [Heatmap(each, grid, volume.source, recipe, "", 0.0).mask(0.3) for each in values]
    found = HeatmapToMaskd("h", 0.3)({"h": MetaTensor(torch.from_numpy(values), affine=GRID.affine.copy())})["h"]
    np.testing.assert_array_equal(found.numpy(), np.stack(known))
    assert not found[1].any()
    np.testing.assert_array_equal(found.affine, GRID.affine)
    with pytest.raises(UsageError, match="between 0 and 1"):
        HeatmapToMask(1.5)
