"""A stored heatmap comes back as it was, and gives the files that it would have given at once."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from conftest import oblique_grid
from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_series
from medcam.cli import main
from medcam.errors import GeometryError, InputError, MedcamError
from medcam.formats import WRITERS, read, write
from medcam.formats.stored import read_heatmap
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

SHAPE = (19, 14, 6)
# What a validator wants of a study, so that every format can be made of it.
STUDY = {
    "StudyDate": "20240102", "StudyTime": "101112", "StudyID": "7", "AccessionNumber": "A1", "PatientBirthDate": "19500101",
    "PatientSex": "O", "ReferringPhysicianName": "Ref^Erring", "PositionReferenceIndicator": "", "BodyPartExamined": "HEAD",
}  # fmt: skip


def source(folder: Path, geometry: str = "oblique", **options: Any) -> Path:
    write_series(folder, stored_values(SHAPE), GEOMETRIES[geometry], tags=STUDY, **options)
    return folder


def heatmap_of(volume: Volume) -> Heatmap:
    """Relevance with all that numbers can be: negative, tiny, minus zero, and not looked at in odd places."""
    draw = np.random.default_rng(3)
    relevance = draw.normal(size=volume.grid.shape).astype(np.float32)
    relevance[draw.random(volume.grid.shape) < 0.2] = np.nan
    relevance[0, 0, 0], relevance[1, 0, 0], relevance[2, 0, 0] = -0.0, 1e-44, np.nan
    recipe = Recipe(
        "net", "ab" * 32, "rise(masks=5)", "", "lesion (class 0)", activation="sigmoid", seed=7, inputs=(volume.source.sha256,),
        windows={"roi_size": [4, 4, 4], "overlap": 0.25, "exact": True}, stride=(1.5, 2.0, 1 / 3), offset=(0.1, 0.2, 0.3),
        input_shape=(1, 8, 8, 8), preprocessing=("a: 'ü'", "b"), versions={"medcam": "0"},
    )  # fmt: skip
    return Heatmap(relevance, volume.grid, volume.source, recipe, "lesion ü (class 0)", 1 / 3, 0.1, ("one.", "two: ü."))


def stored(folder: Path, image: Path, *, formats: str = "nifti", **options: Any) -> tuple[Heatmap, Volume, Path]:
    volume = read(image, **options)
    heatmap = heatmap_of(volume)
    return heatmap, volume, write(heatmap, volume, folder, formats=formats, threshold=0.4)[0]


def bits(relevance: np.ndarray) -> np.ndarray:
    return relevance.view(np.uint32)


@pytest.mark.parametrize("formats", ["nifti", "nrrd"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_heatmap_comes_back_bit_for_bit_with_all_that_is_known_of_it(
    geometry: str, formats: str, tmp_path: Path
) -> None:
    heatmap, volume, path = stored(tmp_path / "out", source(tmp_path / "study", geometry), formats=formats)
    found, image = read_heatmap(path, read(tmp_path / "study"))
    np.testing.assert_array_equal(bits(found.relevance), bits(heatmap.relevance))
    assert found.grid == heatmap.grid
    for name in ("recipe", "target", "score", "probability", "notes", "source"):
        assert getattr(found, name) == getattr(heatmap, name), name
    assert found.recipe.to_json() == heatmap.recipe.to_json()
    np.testing.assert_array_equal(image.voxels, volume.voxels)


def test_viewers_find_zero_where_nothing_was_looked_at(tmp_path: Path) -> None:
    heatmap, _, path = stored(tmp_path / "out", source(tmp_path / "study"))
    values = np.asarray(nibabel.load(path).dataobj)
    np.testing.assert_array_equal(values, np.nan_to_num(heatmap.relevance))
    kept = json.loads((tmp_path / "out" / f"{path.name.removesuffix('.nii.gz')}.json").read_text())
    assert kept["voxels_not_looked_at"] == int(np.isnan(heatmap.relevance).sum())


def without_times(path: Path) -> Any:
    """Return what is in a file; of DICOM all but the moment of writing."""
    if path.suffix != ".dcm":
        return path.read_bytes()
    dataset = pydicom.dcmread(path)

    def forget(item: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR in ("DA", "TM", "DT") and not element.keyword.startswith(("Study", "Patient")):
            element.value = None

    dataset.walk(forget)
    return dataset.to_json(), dataset.file_meta.to_json()


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_written_later_equals_the_one_written_at_once(name: str, tmp_path: Path) -> None:
    volume = read(source(tmp_path / "study"))
    heatmap = heatmap_of(volume)
    # A list of objects has something to list only beside them.
    formats = ",".join(dict.fromkeys(["nifti", *(["dicom-sc"] if name == "dicom-ko" else []), name]))
    at_once = write(heatmap, volume, tmp_path / "now", formats=formats, threshold=0.4)
    first = next(path for path in at_once if path.name.endswith(".nii.gz"))
    words = [
        "export",
        str(first),
        "--source",
        str(tmp_path / "study"),
        "--formats",
        formats,
        "--out",
        str(tmp_path / "later"),
    ]
    assert main([*words, "--quiet"]) == 0
    later = sorted((tmp_path / "later").iterdir())
    assert [path.name for path in later] == sorted(path.name for path in at_once)
    for path in later:
        assert without_times(path) == without_times(tmp_path / "now" / path.name), path.name


def test_a_heatmap_that_was_straightened_is_not_taken_up_for_the_one_that_was_explained(tmp_path: Path) -> None:
    tilted = GEOMETRIES["axial"].copy()
    tilted[1, 2] = 0.9
    write_series(tmp_path / "study", stored_values(SHAPE), tilted, tags=STUDY)
    heatmap, volume, path = stored(tmp_path / "out", tmp_path / "study", formats="nifti,nrrd")
    np.testing.assert_array_equal(bits(read_heatmap(path, volume)[0].relevance), bits(heatmap.relevance))
    with pytest.raises(InputError, match="holds no heatmap that medcam can take up"):
        read_heatmap(path.with_name(path.name.replace(".nii.gz", "_upright.nrrd")), volume)


def test_a_film_and_a_slice_of_a_volume_come_back(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film", stored_values((23, 17, 1))[:, :, 0], tags={"PixelSpacing": [0.2, 0.3]})
    heatmap, _, path = stored(tmp_path / "one", film)
    np.testing.assert_array_equal(bits(read_heatmap(path, read(film))[0].relevance), bits(heatmap.relevance))
    volume = read(source(tmp_path / "study"))
    part = volume.slice(4)
    heatmap = heatmap_of(part)
    path = write(heatmap, part, tmp_path / "two", formats="nifti")[0]
    found, image = read_heatmap(path, volume)
    np.testing.assert_array_equal(image.voxels, part.voxels)
    assert found.source == part.source
    np.testing.assert_array_equal(bits(found.relevance), bits(heatmap.relevance))


def test_another_image_is_refused_by_name(tmp_path: Path) -> None:
    _, _, path = stored(tmp_path / "out", source(tmp_path / "study"))
    other = read(source(tmp_path / "other", uid_seed="other", number=9))
    with pytest.raises(InputError, match="made of another image than MR_s9: their digests differ"):
        read_heatmap(path, other)
    part = tmp_path / "part"
    part.mkdir()
    for file in sorted((tmp_path / "study").iterdir())[:4]:
        (part / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="all of them"):
        read_heatmap(path, read(part))


def test_another_volume_of_the_same_file_is_refused(tmp_path: Path) -> None:
    grid = oblique_grid((7, 9, 5))
    data = np.random.default_rng(0).normal(100, 20, (*grid.shape, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, grid.affine), tmp_path / "many.nii.gz")
    _, _, path = stored(tmp_path / "out", tmp_path / "many.nii.gz", volume=2)
    read_heatmap(path, read(tmp_path / "many.nii.gz", volume=2))
    with pytest.raises(InputError, match="other values than many_v1 now has"):
        read_heatmap(path, read(tmp_path / "many.nii.gz", volume=1))


def test_a_heatmap_that_was_changed_or_moved_since_is_refused(tmp_path: Path) -> None:
    _, volume, path = stored(tmp_path / "out", source(tmp_path / "study"))
    image = nibabel.load(path)
    values = np.asarray(image.dataobj).copy()
    values[3, 2, 1] += 1
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
    with pytest.raises(InputError, match="are not those that its sidecar tells of"):
        read_heatmap(path, volume)
    moved = image.affine.copy()
    moved[0, 3] += 1
    nibabel.save(nibabel.Nifti1Image(values, moved), path)
    with pytest.raises(GeometryError, match="moved or resampled"):
        read_heatmap(path, volume)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        values = json.loads(text)
        change(values)
        return json.dumps(values)

    return edit


def bomb() -> str:
    return base64.b64encode(zlib.compress(b"\0" * 50_000_000)).decode()


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "cut short": lambda text: text[: len(text) // 2],
    "a list": lambda _: "[]",
    "nested beyond measure": lambda _: "[" * 100_000,
    "another version": edited(lambda v: v.update(sidecar_version=2)),
    "no version": edited(lambda v: v.pop("sidecar_version")),
    "no recipe": edited(lambda v: v.pop("recipe")),
    "a recipe of texts": edited(lambda v: v.update(recipe="x")),
    "an unknown entry of the recipe": edited(lambda v: v["recipe"].update(patient="x")),
    "a seed that is a text": edited(lambda v: v["recipe"].update(seed="1")),
    "windows that are a list": edited(lambda v: v["recipe"].update(windows=[1])),
    "a stride of texts": edited(lambda v: v["recipe"].update(stride=["1"])),
    "versions of numbers": edited(lambda v: v["recipe"].update(versions={"a": 1})),
    "a model that is nothing": edited(lambda v: v["recipe"].update(model=None)),
    "a score that is true": edited(lambda v: v.update(score=True)),
    "a score beyond floats": lambda text: text.replace('"score": 0.3333333333333333', f'"score": 1{"0" * 400}'),
    "a probability in words": edited(lambda v: v.update(probability="likely")),
    "notes of numbers": edited(lambda v: v.update(notes=[1])),
    "a target of half a letter": edited(lambda v: v.update(target="\ud800")),
    "no digest": edited(lambda v: v.pop("relevance_sha256")),
    "another digest": edited(lambda v: v.update(relevance_sha256="0" * 64)),
    "no base64": edited(lambda v: v.update(not_looked_at="*")),
    "no zlib": edited(lambda v: v.update(not_looked_at="AAAA")),
    "too few voxels": edited(lambda v: v.update(not_looked_at=base64.b64encode(zlib.compress(b"x")).decode())),
    "a bomb": edited(lambda v: v.update(not_looked_at=bomb())),
    "no image": edited(lambda v: v.update(image=None)),
    "an image without values": edited(lambda v: v.update(image={})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_hostile_or_damaged_sidecar_ends_in_one_sentence(damage: str, tmp_path: Path) -> None:
    _, volume, path = stored(tmp_path / "out", source(tmp_path / "study"))
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    text = sidecar.read_text()
    changed = DAMAGE[damage](text)
    assert changed != text
    sidecar.write_text(changed)
    with pytest.raises(InputError) as caught:
        read_heatmap(path, volume)
    assert len(str(caught.value)) < 400


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    _, volume, path = stored(tmp_path / "out", source(tmp_path / "study"))
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    sidecar.write_text(DAMAGE["a bomb"](sidecar.read_text()))
    tracemalloc.start()
    with pytest.raises(InputError):
        read_heatmap(path, volume)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


def test_any_byte_of_a_sidecar_may_be_wrong(tmp_path: Path) -> None:
    heatmap, volume, path = stored(tmp_path / "out", source(tmp_path / "study"))
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    content = sidecar.read_bytes()
    draw = np.random.default_rng(11)
    for _ in range(150):
        broken = bytearray(content)
        for place in draw.integers(0, len(content), draw.integers(1, 4)):
            broken[place] = draw.integers(0, 256)
        sidecar.write_bytes(broken)
        try:
            found, _ = read_heatmap(path, volume)
        except MedcamError:
            continue
        np.testing.assert_array_equal(np.isfinite(found.relevance) * 0, np.zeros(heatmap.grid.shape))


def test_what_is_no_stored_heatmap_is_named(tmp_path: Path) -> None:
    _, volume, path = stored(tmp_path / "out", source(tmp_path / "study"))
    mask = path.with_name(path.name.replace(".nii.gz", "_label.nii.gz"))
    with pytest.raises(InputError, match="is the mask of a heatmap; give the heatmap itself"):
        read_heatmap(mask, volume)
    with pytest.raises(InputError, match=r"is no stored heatmap"):
        read_heatmap(tmp_path / "study" / "000.dcm", volume)
    path.with_name(path.name.replace(".nii.gz", ".json")).unlink()
    with pytest.raises(InputError, match=r"there is no file MR_s4_.*_rise\.json"):
        read_heatmap(path, volume)


def test_export_says_what_is_missing_and_names_no_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, path = stored(tmp_path / "out", source(tmp_path / "study"))
    assert main(["export", str(path), "--formats", "png"]) == 2
    assert "--source is missing" in capsys.readouterr().err
    assert main(["export", str(path), "--source", str(tmp_path / "study")]) == 2
    assert "--formats is missing" in capsys.readouterr().err
    assert (
        main(["export", str(path), "--source", str(tmp_path / "study"), "--formats", "slicer", "--threshold", "0.7"])
        == 0
    )
    said = capsys.readouterr()
    assert "wrote " in said.out
    assert (path.parent / path.name.replace(".nii.gz", ".mrb")).is_file()
    source(tmp_path / "other", uid_seed="other")
    assert main(["export", str(path), "--source", str(tmp_path / "other"), "--formats", "png"]) == 4
    said_too = capsys.readouterr()
    for marker in MARKERS:
        assert marker not in said.out + said.err + said_too.out + said_too.err
