"""Watching maps while training: training does not notice, and what is written is what the maps are."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from plugins.training import Net, cases, seeded, trained
from scipy.stats import spearmanr
from torch import nn

import medcam
from conftest import oblique_grid
from medcam.errors import InputError, ModelError, OutputError, UsageError
from medcam.plugins.watched_maps import read_maps, steps_in
from medcam.plugins.watched_picture import picture
from medcam.plugins.watched_scene import scenes_of
from medcam.plugins.watching import Look, Watch, begin, look, look_if_possible


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "numbers.csv").open(newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.parametrize(
    ("dims", "method"),
    [
        (2, "grad-cam"),
        *(
            pytest.param(dims, method, marks=pytest.mark.slow)
            for dims, method in (
                (3, "grad-cam"),
                (3, "rise(masks=12)"),
                (3, "smoothgrad(samples=2)"),
                (2, "ablation-cam"),
                (2, "fullgrad"),
            )
        ),
    ],
)
def test_training_ends_at_the_same_weights_bit_by_bit_whether_or_not_anybody_looks(
    dims: int, method: str, tmp_path: Path
) -> None:
    network = seeded(dims)
    alone = trained(network, dims, 5, lambda step: None)
    images, _, masks = cases(dims, 3)
    # Before the seed: the checks of types that tests run under draw from Python's random numbers.
    watch = Watch(images, tmp_path, method=method, target=1, lesions=masks)
    again = seeded(dims)
    seen = trained(again, dims, 5, lambda step: look(watch, again, step) if step in (0, 3, 5) else None)
    assert alone.keys() == seen.keys()
    assert all(torch.equal(alone[name], seen[name]) for name in alone)
    assert steps_in(tmp_path) == [0, 3, 5]
    # The comparison can fail: a look that draws one number gives other weights.
    if (dims, method) == (2, "grad-cam"):
        third = seeded(dims)
        disturbed = trained(third, dims, 5, lambda step: torch.rand(1) if step == 2 else None)
        assert not torch.equal(disturbed["head.weight"], alone["head.weight"])


def test_each_module_is_in_its_own_mode_again_and_eval_is_never_called(tmp_path: Path) -> None:
    network = Net(2).train()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    images, _, _ = cases(2, 2)
    look(Watch(images, tmp_path, target=0), network, 0)
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(UsageError, match="no layer 'nowhere'"):
        look(Watch(images, tmp_path, target=0, layer="nowhere"), network, 1)
    assert [module.training for module in network.modules()] == modes
    assert network.evaluated == 0
    assert all(p.grad is None for p in network.parameters())


def test_the_map_is_that_of_the_network_at_inference(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).train(), cases(2, 2)
    seen = look(Watch(images, tmp_path, target=1, layer="block.2"), network, 0)
    expected = medcam.relevance(network.eval(), images, target=1, layer="block.2").on_input()
    assert np.array_equal(seen.maps, expected.numpy())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_numbers_are_those_of_the_maps(dims: int, tmp_path: Path) -> None:
    network = seeded(dims)
    images, _, masks = cases(dims, 3)
    # The third image has no lesion.
    masks[2] = 0
    affine = oblique_grid().affine
    watch = Watch(images, tmp_path, target=1, lesions=masks[:, None], affines=[affine] * 3, names=["a", "b", "c"])
    looks = dict[int, Look]()
    trained(network, dims, 8, lambda step: looks.setdefault(step, look(watch, network, step)) if step % 4 == 0 else 0)
    table = rows(tmp_path)
    assert [(row["step"], row["image"]) for row in table] == [(str(s), n) for s in (0, 4, 8) for n in "abc"]
    for row in table:
        step, n = int(row["step"]), "abc".index(row["image"])
        values, mask = looks[step].maps[n].astype(float), masks[n].numpy() > 0
        positive = values.clip(min=0)
        peak = np.unravel_index(values.argmax(), values.shape)
        if values.max() <= 0:
            assert row["peak"] == row["peak_x_mm"] == row["in_lesion"] == ""
            continue
        assert row["peak"] == " ".join(map(str, peak))
        place = affine @ [*peak, *[0] * (3 - dims), 1]
        assert [float(row[f"peak_{axis}_mm"]) for axis in "xyz"] == pytest.approx(place[:3], rel=1e-4)
        assert float(row["maximum"]) == pytest.approx(values.max(), rel=1e-5)
        if n == 2:
            assert row["in_lesion"] == row["lesion_share"] == row["peak_in_lesion"] == ""
        else:
            assert float(row["in_lesion"]) == pytest.approx(positive[mask].sum() / positive.sum(), rel=1e-4)
            assert float(row["lesion_share"]) == pytest.approx(mask.mean(), rel=1e-4)
            assert row["peak_in_lesion"] == str(int(mask[peak]))
        if step == 0:
            assert (row["before"], row["rank_correlation"], row["ssim"], row["moved"]) == ("-1", "", "", "")
        else:
            now, before = (read_maps(tmp_path, each).relevance.values[n].numpy() for each in (step, step - 4))
            assert row["before"] == str(step - 4)
            assert float(row["rank_correlation"]) == pytest.approx(spearmanr(now, before, axis=None)[0], abs=1e-4)
    assert any(row["rank_correlation"] for row in table)
    assert any(row["peak"] for row in table)
    assert any(row["moved"] not in ("", "0") for row in table)


def test_a_map_that_stays_is_like_itself_and_one_of_another_class_is_not_compared(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).eval(), cases(2, 1)
    look(Watch(images, tmp_path, target=0), network, 0)
    (same,) = look(Watch(images, tmp_path, target=0), network, 3).numbers
    assert (same.before, same.moved) == (0, 0)
    assert same.rank_correlation == pytest.approx(1)
    assert same.ssim == pytest.approx(1)
    (other,) = look(Watch(images, tmp_path, target=1), network, 5).numbers
    assert other.before == -1
    assert np.isnan([other.rank_correlation, other.ssim, other.moved]).all()
    (elsewhere,) = look(Watch(images + 1, tmp_path, target=1), network, 6).numbers
    assert elsewhere.before == -1


def test_each_image_is_told_its_own_class_where_the_predicted_ones_differ(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).eval(), cases(2, 2)
    found = look(Watch(images, tmp_path, target=[1, 0]), network, 0).numbers
    assert [each.target for each in found] == ["class 1", "class 0"]


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_came_after_it(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).eval(), cases(2, 2)
    watch = Watch(images, tmp_path, target=0)
    for step in (0, 10, 20, 30):
        look(watch, network, step)
    with torch.no_grad():
        network.head.weight.mul_(2)
    (first, _) = look(watch, network, 15).numbers
    assert first.before == 10
    assert steps_in(tmp_path) == [0, 10, 15]
    assert [int(row["step"]) for row in rows(tmp_path)] == [0, 0, 10, 10, 15, 15]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"picture_{s:08d}.png" for s in (0, 10, 15)]
    with pytest.raises(UsageError, match="another run, up to step 15"):
        begin(watch)
    begin(Watch(images, tmp_path / "new", target=0))


def test_images_may_come_from_a_function_of_the_trainers_state_that_draws_random_numbers(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).train(), cases(2, 4)
    watch = Watch(lambda state: images[torch.randperm(4)[: state["count"]]], tmp_path, target=0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert len(look(watch, network, 0, state={"count": 3}).numbers) == 3
    assert torch.equal(torch.rand(3), expected)


def test_a_logger_gets_each_look_with_its_picture(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).eval(), cases(2, 2)
    told: list[Look] = []
    seen = look(Watch(images, tmp_path, target=0, log=told.append), network, 7)
    assert told == [seen]
    assert seen.picture == tmp_path / "picture_00000007.png"
    with Image.open(seen.picture) as drawn:
        assert drawn.size[0] > 400
    assert 0 < seen.seconds < 60


def hot(figure: Any, row: int, column: int, columns: int) -> np.ndarray:
    """Where a cell of a picture has a colour."""
    cells = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    # After each row stands its colour bar.
    return np.ptp(np.asarray(cells[row * (columns + 2) + 1 + column], int), axis=-1) > 30


def test_all_looks_of_an_image_are_drawn_on_one_scale(tmp_path: Path) -> None:
    network, (images, _, _) = Net(2).eval(), cases(2, 2)
    watch = Watch(images, tmp_path, layer="block.2", target=1)
    for step, factor in enumerate((1.0, 4.0, 0.2)):
        with torch.no_grad():
            network.head.weight.mul_(factor)
        look(watch, network, step)
    maps = [read_maps(tmp_path, step) for step in (0, 1, 2)]
    figure = picture(scenes_of(images), maps, threshold=0.4)
    for n in range(2):
        values = [each.on_input()[n] for each in maps]
        top = max(each.max() for each in values)
        assert top > 0
        for column, each in enumerate(values):
            assert np.array_equal(hot(figure, n, column, 3), each >= np.float32(0.4) * np.float32(top))
        # The largest look is neither the first nor the last.
        assert hot(figure, n, 1, 3).any()
        assert not hot(figure, n, 0, 3).any()
        assert not hot(figure, n, 2, 3).any()


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_a_volume_that_knows_its_place_is_drawn_axial_with_the_patients_left_at_the_right(
    flips: tuple[int, int, int], tmp_path: Path
) -> None:
    shape, affine = (14, 18, 10), np.diag([*flips, 1.0]) @ np.diag([1.5, 1.1, 3.0, 1])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    # The patient's left, in front.
    index = np.linalg.inv(affine) @ [-5, 5, 4.5, 1]
    i, j, k = np.rint(index[:3]).astype(int)
    values = torch.zeros(1, 1, *shape)
    values[0, 0, i - 1 : i + 2, j - 1 : j + 2, k] = 1

    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).square().flatten(2).mean(2)

    network = Bright()
    with torch.no_grad():
        network.conv.weight.fill_(1)
        network.conv.bias.fill_(0)
    images = MetaTensor(values, affine=torch.as_tensor(affine)[None])
    seen = look(Watch(images, tmp_path, layer="conv", target=0), network, 0)
    assert seen.numbers[0].peak_x_mm < -2
    figure = picture(scenes_of(images), [read_maps(tmp_path, 0)], threshold=0.3)
    down, across = np.argwhere(hot(figure, 0, 0, 1)).mean(0)
    assert down < 18 / 2 - 3
    assert across > 14 / 2 + 1.5
    letters = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert letters == ["R", "L", "A", "P"]


def test_a_tensor_of_unknown_place_gets_no_letters(tmp_path: Path) -> None:
    images, _, _ = cases(3, 1)
    (plain,) = scenes_of(images)
    (unknown,) = scenes_of(MetaTensor(images))
    assert not plain.placed
    assert not unknown.placed
    look(Watch(images, tmp_path, target=0), Net(3).eval(), 0)
    figure = picture([plain], [read_maps(tmp_path, 0)], threshold=0.3)
    assert not [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]
    assert np.isnan(np.array([float(rows(tmp_path)[0]["peak_x_mm"] or "nan")])).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lesions": np.zeros((2, 9, 9))}, r"lesions of shape \(2, 9, 9\) do not fit 2 images"),
        ({"affines": [np.eye(4)]}, "1 affines were given for 2 images"),
        ({"names": ["one"]}, "1 names were given for 2 images"),
        ({"channel": 1}, "channels 0 to 0"),
        ({"images": torch.zeros(3, 4)}, "a tensor b c i j or b c i j k"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    images, _, _ = cases(2, 2)
    with pytest.raises(UsageError, match=words):
        look(Watch(**{"images": images, "folder": tmp_path, "target": 0} | change), Net(2), 0)
    assert not list(tmp_path.iterdir())


def test_a_threshold_that_is_no_fraction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0 and below 1, not 30"):
        Watch(torch.zeros(1, 1, 4, 4), tmp_path, threshold=30)


def test_a_network_spread_over_devices_is_refused_in_words(tmp_path: Path) -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    network = nn.Sequential(Net(2), FullyShardedDataParallel())
    with pytest.raises(ModelError, match="spread over several devices"):
        look(Watch(cases(2, 1)[0], tmp_path, target=0), network, 0)


def test_a_folder_that_cannot_be_written_to_costs_a_warning_and_not_the_training(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    watch = Watch(cases(2, 1)[0], tmp_path / "taken", target=0)
    with pytest.raises(OutputError):
        look(watch, Net(2), 4)
    with pytest.warns(RuntimeWarning, match="did not look at step 4"):
        look_if_possible(watch, Net(2), 4)


def test_damaged_files_of_earlier_looks_are_named(tmp_path: Path) -> None:
    watch = Watch(cases(2, 1)[0], tmp_path, target=0)
    look(watch, Net(2), 0)
    (tmp_path / "maps_00000000.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"maps_00000000\.npz does not hold"):
        look(watch, Net(2), 1)
    (tmp_path / "maps_00000000.npz").unlink()
    (tmp_path / "numbers.csv").write_text("step,other\n0,1\n")
    with pytest.raises(InputError, match="other columns"):
        look(watch, Net(2), 1)
