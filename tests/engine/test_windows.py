"""Explaining through sliding windows: MONAI's prediction, and maps that an independent loop over windows gives too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer, sliding_window_inference
from torch import Tensor, nn

from engine.toy_networks import Classifier, Segmenter, conv
from medcam.engine import EXPLAINERS, Layer, Relevance, relevance, relevances, rule
from medcam.engine.layers import feature_layers
from medcam.engine.windows import Windows, windowed_relevance, windowed_relevances
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
SIDES = {2: (13, 18), 3: (9, 13, 11)}
ROI = {2: (8, 10), 3: (6, 8, 6)}


def volumes(dims: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 2, *SIDES[dims], dtype=dtype)


# ---------------------------------------------------------------- the twin: every window alone, blended by loops


def starts_by_hand(image: int, roi: int, overlap: float) -> list[int]:
    """Where windows begin: steps of the part that is not overlapped, the last window pushed back into the image."""
    step = max(1, int(roi * (1 - overlap))) if roi < image else roi
    found = [0]
    while found[-1] + roi < image:
        found.append(min(found[-1] + step, image - roi))
    return found


def importance_by_hand(roi: Sequence[int], mode: str, sigma_scale: float = 0.125) -> np.ndarray:
    found = np.ones(roi)
    if mode == "gaussian":
        for place in np.ndindex(*roi):
            apart = [(i - (n - 1) / 2) ** 2 / (2 * (n * sigma_scale) ** 2) for i, n in zip(place, roi, strict=True)]
            found[place] = math.exp(-sum(apart))
    return np.maximum(found, max(found.min(), 1e-3))


def linear(values: np.ndarray, place: Sequence[float]) -> float:
    """Multilinear interpolation at one place, constant beyond the ends."""
    total = 0.0
    held = [min(max(p, 0.0), n - 1.0) for p, n in zip(place, values.shape, strict=True)]
    for corner in itertools.product(*[(math.floor(p), math.floor(p) + 1) for p in held]):
        weight = math.prod(max(0.0, 1 - abs(p - c)) for p, c in zip(held, corner, strict=True))
        if weight > 0:
            total += weight * values[corner]
    return total


def blended_by_hand(
    maps: dict[tuple[int, ...], np.ndarray], stride: Sequence[float], offset: Sequence[float], importance: np.ndarray
) -> np.ndarray:
    """Blend windows' maps (by where the windows begin) on the first window's cells, carried on through the volume."""
    roi, cells = importance.shape, next(iter(maps.values())).shape
    ends = [max(corner[a] for corner in maps) / stride[a] + cells[a] - 1 for a in range(len(roi))]
    shape = [math.floor(end + 0.5 + 1e-9) + 1 for end in ends]
    result = np.zeros(shape)
    for j in np.ndindex(*shape):
        total = summed = 0.0
        for corner, values in maps.items():
            place = [n - at / s for n, at, s in zip(j, corner, stride, strict=True)]
            if all(-0.5 - 1e-9 <= p <= t - 0.5 + 1e-9 for p, t in zip(place, cells, strict=True)):
                voxel = [o + s * n - at for o, s, n, at in zip(offset, stride, j, corner, strict=True)]
                weight = linear(importance, voxel)
                total += weight * linear(values, place)
                summed += weight
        result[j] = total / summed
    return result


def by_hand(
    network: nn.Module, volume: Tensor, layer: str, c: int, method: str, roi: Sequence[int], overlap: float, mode: str
) -> tuple[np.ndarray, int]:
    """Every window of one volume by `relevance` alone, zeros where it does not predict class c; and how many predict it.

    Where none does, `relevance` scores everything, and so does this.
    """
    maps, there = {}, {}
    starts = [starts_by_hand(n, r, overlap) for n, r in zip(volume.shape[1:], roi, strict=True)]
    for corner in itertools.product(*starts):
        box = tuple(slice(a, a + r) for a, r in zip(corner, roi, strict=True))
        crop = volume[(slice(None), *box)][None]
        found = relevance(network, crop, layer=layer, target=c, method=method)
        maps[corner] = found.values[0].numpy()
        with torch.no_grad():
            there[corner] = network(crop).ndim == 2 or bool((network(crop).argmax(1) == c).any())
    hits = sum(there.values())
    kept = {corner: values * (there[corner] or hits == 0) for corner, values in maps.items()}
    return blended_by_hand(kept, found.stride, found.offset, importance_by_hand(roi, mode)), hits


def balanced(network: Segmenter, x: Tensor) -> Segmenter:
    """Shift the scores so that each class is predicted somewhere."""
    with torch.no_grad():
        network.out.bias -= network(x).transpose(0, 1).flatten(1).mean(1)
    return network


# ---------------------------------------------------------------- the prediction


@DIMS
@pytest.mark.parametrize(
    ("batch", "overlap", "mode", "padding"),
    [(1, 0.25, "gaussian", "constant"), (3, 0.4, "constant", "constant"), (3, 0.0, "gaussian", "replicate")],
)
def test_the_prediction_is_monais_bit_for_bit(dims: int, batch: int, overlap: float, mode: str, padding: str) -> None:
    network = Segmenter(dims).eval()
    # One axis shorter than a window, and batches of windows that reach over two volumes.
    for sides in (SIDES[dims], (5, *SIDES[dims][1:])):
        x = torch.randn(2, 2, *sides)
        cval = 0.3 if padding == "constant" else 0.0
        with torch.no_grad():
            expected = sliding_window_inference(
                x, ROI[dims], batch, network, overlap=overlap, mode=mode, padding_mode=padding, cval=cval
            )
        settings = Windows(ROI[dims], overlap, mode, padding_mode=padding, cval=cval, sw_batch_size=batch)
        for target in (1,) if dims == 3 else (1, None, "2@largest"):
            found = windowed_relevances(network, x, settings, targets=[target], layers=["deep"], prediction=True)
            assert torch.equal(found.prediction, expected)


def test_settings_are_read_from_monais_own_inferer() -> None:
    network, x = Segmenter(3).eval(), volumes(3, 1, torch.float32)
    inferer = SlidingWindowInferer(
        roi_size=[6, 8, 6], sw_batch_size=2, overlap=[0.5, 0.25, 0.0], mode="gaussian", sigma_scale=0.2
    )
    found = windowed_relevances(network, x, Windows.of(inferer), targets=[2], layers=["deep"], prediction=True)
    with torch.no_grad():
        assert torch.equal(found.prediction, inferer(x, network))


# ---------------------------------------------------------------- the maps


@pytest.mark.parametrize(
    ("dims", "layer", "overlap", "mode"),
    [
        (2, "deep", 0.25, "gaussian"), (2, "deep", 0.5, "constant"), (2, "up", 0.0, "gaussian"), (3, "deep", 0.3, "gaussian"),
        (3, "up", 0.0, "gaussian"),
    ],
)  # fmt: skip
def test_maps_are_those_of_every_window_alone_blended_by_a_loop(
    dims: int, layer: str, overlap: float, mode: str
) -> None:
    x, classes = volumes(dims), [1, 2]
    network = balanced(Segmenter(dims).double().eval(), x)
    settings = Windows(ROI[dims], overlap, mode, sw_batch_size=3)
    found = windowed_relevance(network, x, settings, layer=layer, target=classes)
    for n, c in enumerate(classes):
        expected, _ = by_hand(network, x[n], layer, c, "grad-cam", ROI[dims], overlap, mode)
        np.testing.assert_allclose(found.values[n].numpy(), expected, rtol=1e-5, atol=1e-6 * abs(expected).max())
    assert found.input_shape == SIDES[dims]


@DIMS
def test_a_classifiers_windows_are_explained_by_their_own_scores(dims: int) -> None:
    network, x = Classifier(dims).double().eval(), volumes(dims)
    found = windowed_relevance(network, x, Windows(ROI[dims], 0.5), layer="block", target=[3, 0])
    for n, c in enumerate([3, 0]):
        expected, count = by_hand(network, x[n], "block", c, "grad-cam", ROI[dims], 0.5, "gaussian")
        np.testing.assert_allclose(found.values[n].numpy(), expected, rtol=1e-5, atol=1e-6 * abs(expected).max())
        means = windows_of(x[n], ROI[dims], 0.5)
        with torch.no_grad():
            np.testing.assert_allclose(found.scores[n], network(means)[:, c].mean(), rtol=1e-6)
            np.testing.assert_allclose(found.probabilities[n], network(means).softmax(1)[:, c].mean(), rtol=1e-6)
        assert f"in {count} windows" in " ".join(found.notes[n])


def windows_of(volume: Tensor, roi: Sequence[int], overlap: float) -> Tensor:
    starts = [starts_by_hand(n, r, overlap) for n, r in zip(volume.shape[1:], roi, strict=True)]
    boxes = [tuple(slice(a, a + r) for a, r in zip(corner, roi, strict=True)) for corner in itertools.product(*starts)]
    return torch.stack([volume[(slice(None), *box)] for box in boxes])


# What is a function of one activation and one gradient, and what runs the network again.
RUNNING = [
    "smooth-grad-cam++(samples=2)",
    "score-cam(top=3)",
    "ablation-cam",
    "occlusion(window=5, stride=4)",
    "rise(masks=3)",
]
RULES = [
    name for name, make in EXPLAINERS.items()
    if make().needs in ({"activation", "gradient"}, {"activation"}) and "smooth" not in name and name not in (
        "score-cam", "group-cam", "cluster-cam", "cosine-cam"
    )
]  # fmt: skip


def test_every_method_is_blended_from_windows_alone() -> None:
    x = volumes(2, 1)
    network, methods = balanced(Segmenter(2).double().eval(), x), [*RULES, *RUNNING]
    settings = Windows(ROI[2], 0.4, sw_batch_size=2)
    found = windowed_relevances(network, x, settings, layers=["deep"], targets=[1], methods=methods)
    for one, method in zip(found.relevances, methods, strict=True):
        expected, _ = by_hand(network, x[0], "deep", 1, method, ROI[2], 0.4, "gaussian")
        np.testing.assert_allclose(one.values[0], expected, rtol=1e-5, atol=1e-6 * abs(expected).max(), err_msg=method)


@DIMS
@pytest.mark.parametrize("make", [Segmenter, Classifier])
def test_one_window_over_all_gives_what_the_whole_volume_gives(dims: int, make: Callable[[int], nn.Module]) -> None:
    network, x = make(dims).double().eval(), volumes(dims)
    layer, targets = "deep" if make is Segmenter else "block", [2, [1, 0], None]
    methods = [name for name in [*RULES, *RUNNING] if make is Segmenter or not name.startswith("seg-")]
    settings = Windows(SIDES[dims], sw_batch_size=2)
    whole = relevances(network, x, layers=[layer], targets=targets, methods=methods)
    found = windowed_relevances(network, x, settings, layers=[layer], targets=targets, methods=methods)
    for one, expected in zip(found.relevances, whole, strict=True):
        agree(one, expected)
    if make is Segmenter:
        whole = relevances(network, x, layers=[layer], targets=targets, methods=RULES)
        found = windowed_relevances(network, x, settings, layers=[layer], targets=targets, methods=RULES, exact=True)
        for one, expected in zip(found.relevances, whole, strict=True):
            agree(one, expected)


def agree(found: Relevance, expected: Relevance) -> None:
    torch.testing.assert_close(found.values, expected.values, msg=lambda words: f"{found.method}: {words}")
    torch.testing.assert_close(found.scores, expected.scores)
    assert (found.probabilities is None) == (expected.probabilities is None)
    if expected.probabilities is not None:
        torch.testing.assert_close(found.probabilities, expected.probabilities)
    for name in ("stride", "offset", "input_shape", "layer", "method", "classes", "target", "score", "notes"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_any_target_over_one_window_is_that_of_the_whole_volume(score: str) -> None:
    x = volumes(2)
    network = balanced(Segmenter(2).double().eval(), x)
    targets = ["1@largest", "1@boundary:1", "2-0", "not:1", "1,2", "1@whole", "1@voxel:3,4", "finer:1", "predicted"]
    whole = relevances(network, x, layers=["deep"], targets=targets, score=score)
    found = windowed_relevances(network, x, Windows(SIDES[2]), layers=["deep"], targets=targets, score=score)
    for one, expected in zip(found.relevances, whole, strict=True):
        agree(one, expected)


# ---------------------------------------------------------------- where and how much


class Blobs(nn.Module):
    """Two classes: background, and whatever is bright after averaging over cells of 4 voxels."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.cells = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](4)
        self.features = conv(dims)(1, 2, 1)
        self.out = conv(dims)(2, 2, 1)
        self.mode = {2: "bilinear", 3: "trilinear"}[dims]
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, -1.0]).reshape(self.features.weight.shape))
            self.features.bias.zero_()
            self.out.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]).reshape(self.out.weight.shape))
            self.out.bias.copy_(torch.tensor([0.0, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(self.cells(x)).relu()
        return self.out(nn.functional.interpolate(found, size=x.shape[2:], mode=self.mode))


def blob(sides: Sequence[int], centre: Sequence[float], width: float = 3.0) -> Tensor:
    apart = sum(
        ((torch.arange(n) - c) ** 2).reshape([-1 if a == axis else 1 for a in range(len(sides))])
        for axis, (n, c) in enumerate(zip(sides, centre, strict=True))
    )
    return torch.exp(-apart / (2 * width**2))[None, None]


def counted(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count samples that pass through a network, and backward passes."""
    counts, plain = {"forward": 0, "backward": 0}, torch.autograd.grad

    def forward(_module: nn.Module, args: tuple[Tensor]) -> None:
        counts["forward"] += len(args[0])

    def grad(*args: object, **named: object) -> object:
        counts["backward"] += 1
        return plain(*args, **named)

    network.register_forward_pre_hook(forward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    return counts


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("sides", "roi", "overlap"),
    [
        ((61, 38), (16, 24), 0.25),
        ((61, 38), (20, 20), 0.6),
        ((43, 30, 26), (16, 24, 16), 0.5),
        ((43, 30, 26), (16, 16, 16), 0.3),
    ],
)
def test_the_peak_lies_on_the_lesion_wherever_windows_lie(
    sides: tuple[int, ...], roi: tuple[int, ...], overlap: float, exact: bool
) -> None:
    network, generator = Blobs(len(sides)).eval(), torch.Generator().manual_seed(1)
    for _ in range(4 if len(sides) == 3 else 8):
        centre = [float(c) for c in torch.rand(len(sides), generator=generator) * (torch.tensor(sides) - 9) + 4]
        found = windowed_relevance(
            network, blob(sides, centre), Windows(roi, overlap), layer="features", target=1, exact=exact
        )
        placed = found.on_input()[0]
        peak = np.unravel_index(int(placed.argmax()), sides)
        # Half a cell is 2 voxels; the grid's own nearest cell centre may be as far away.
        assert all(abs(p - c) <= 2.01 for p, c in zip(peak, centre, strict=True)), (centre, peak)
        # Half of the relevance lies within two cells.
        near = blob(sides, centre, 1.0)[0, 0] > math.exp(-(8**2) / 2)
        assert placed[near].sum() > 0.5 * placed.clamp(min=0).sum()


def test_windows_that_see_nothing_of_the_class_add_nothing_and_cost_no_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, x = Blobs(2).eval(), blob((64, 48), (12, 12))
    settings, layer = Windows((16, 16), 0.0, "constant"), feature_layer(network, x)
    counts = counted(network, monkeypatch)
    found = windowed_relevance(network, x, settings, layer=layer, target=1)
    assert counts == {"forward": 12, "backward": 1}
    assert not found.values[:, 4:].any()
    assert found.values[:, :4, :4].sum() > 0
    (note,) = found.notes[0]
    assert (
        note
        == "The network saw the volume in 12 windows of 16 x 16 voxels; 1 of them, in which the target is predicted, add to the map."
    )


def feature_layer(network: nn.Module, x: Tensor) -> Layer:
    """Found beforehand, so that finding it is not counted."""
    return next(layer for layer in feature_layers(network, x[..., :16, :16]) if layer.name == "features")


def test_the_predicted_class_is_that_of_the_stitched_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    x = volumes(2)
    network = balanced(Segmenter(2).double().eval(), x)
    settings = Windows(ROI[2], 0.4, sw_batch_size=2)
    with torch.no_grad():
        stitched = sliding_window_inference(x, ROI[2], 2, network, overlap=0.4, mode="gaussian").argmax(1).flatten(1)
    expected = tuple(1 + int((row == 2).sum() > (row == 1).sum()) for row in stitched)
    found = windowed_relevance(network, x, settings, layer="deep")
    given = windowed_relevance(network, x, settings, layer="deep", target=expected)
    assert found.classes == expected
    torch.testing.assert_close(found.values, given.values)
    torch.testing.assert_close(found.scores, given.scores)
    assert f"No target was given; the predicted class, {expected[0]}, is explained." in found.notes[0]
    # One look, one sweep that predicts, and one over the windows that predict the class.
    blobs, y = Blobs(2).eval(), blob((64, 48), (12, 12))
    layer, counts = feature_layer(blobs, y), counted(blobs, monkeypatch)
    told: list[tuple[int, int]] = []
    windowed_relevance(
        blobs, y, Windows((16, 16), 0.0), layer=layer, progress=lambda done, total: told.append((done, total))
    )
    assert counts == {"forward": 1 + 12 + 1, "backward": 1}
    assert (told[0], told[11], told[-1]) == ((1, 24), (12, 24), (13, 13))


def test_a_class_that_no_window_predicts_is_scored_everywhere_as_in_a_whole_volume() -> None:
    network, x = Blobs(2).eval(), torch.cat([blob((64, 48), (12, 12)), 0.1 * blob((64, 48), (40, 30))])
    found = windowed_relevance(network, x, Windows((16, 24), 0.5), layer="features", target=1)
    assert found.notes[1][0] == "The network predicts class 1 nowhere; its score is summed over the whole output."
    assert ["add to the map" in notes[-1] for notes in found.notes] == [True, False]
    maps = {
        corner: relevance(network, crop_of(x[1:], corner, (16, 24)), layer="features", target=1)
        .values[0]
        .double()
        .numpy()
        for corner in itertools.product([0, 8, 16, 24, 32, 40, 48], [0, 12, 24])
    }
    expected = blended_by_hand(maps, found.stride, found.offset, importance_by_hand((16, 24), "gaussian"))
    np.testing.assert_allclose(found.values[1], expected, rtol=1e-4, atol=1e-6 * abs(expected).max())
    with torch.no_grad():
        stitched = sliding_window_inference(x, (16, 24), 1, network, overlap=0.5, mode="gaussian")
    torch.testing.assert_close(found.scores[1], stitched[1, 1].sum(), rtol=1e-4, atol=1e-3)


def crop_of(x: Tensor, corner: Sequence[int], roi: Sequence[int]) -> Tensor:
    return x[(slice(None), slice(None), *(slice(a, a + r) for a, r in zip(corner, roi, strict=True)))]


@DIMS
def test_a_volume_smaller_than_a_window_is_filled_up_and_cropped_again(dims: int) -> None:
    sides = SIDES[dims]
    roi = (sides[0] + 7, *sides[1:])
    x = volumes(dims)
    network = balanced(Segmenter(dims).double().eval(), x)
    pad = [0, 0] * (dims - 1) + [3, 4]
    filled = nn.functional.pad(x, pad, value=0.5)
    found = windowed_relevance(network, x, Windows(roi, cval=0.5), layer="up", target="1@whole", exact=True)
    # The score is that of the volume's own voxels.
    whole = relevance(network, filled, layer="up", target=lambda scores: scores[:, 1, 3:-4].flatten(1).sum(1))
    torch.testing.assert_close(found.values, whole.values[:, 3:-4])
    torch.testing.assert_close(found.scores, whole.scores)
    assert (found.offset, found.input_shape, found.values.shape[1:]) == (pytest.approx(whole.offset), sides, sides)
    found = windowed_relevance(network, x, Windows(roi, cval=0.5), layer="up", target=1)
    with torch.no_grad():
        region = (network(filled).argmax(1) == 1)[:, 3:-4]
    whole = relevance(network, filled, layer="up", target=lambda s: (s[:, 1, 3:-4] * region).flatten(1).sum(1))
    torch.testing.assert_close(found.values, whole.values[:, 3:-4])
    torch.testing.assert_close(found.scores, whole.scores)


@DIMS
@pytest.mark.parametrize("exact", [False, True])
def test_batches_of_windows_and_of_volumes_give_what_one_by_one_gives(dims: int, exact: bool) -> None:
    x = volumes(dims, 3)
    network = balanced(Segmenter(dims).double().eval(), x)
    together = windowed_relevance(
        network, x, Windows(ROI[dims], sw_batch_size=5), layer="deep", target=[1, 2, 1], exact=exact
    )
    for n, c in enumerate([1, 2, 1]):
        alone = windowed_relevance(network, x[n : n + 1], Windows(ROI[dims]), layer="deep", target=c, exact=exact)
        torch.testing.assert_close(together.values[n], alone.values[0])
        torch.testing.assert_close(together.scores[n], alone.scores[0])
        assert together.notes[n] == alone.notes[0]


def test_many_answers_from_one_sweep_are_those_one_by_one() -> None:
    dims = 2
    x = volumes(dims)
    network = balanced(Segmenter(dims).double().eval(), x)
    settings = Windows(ROI[dims], 0.0, sw_batch_size=4)
    methods, targets, layers = ["grad-cam", "layer-cam", "rise(masks=2)"], [1, "2-0", None, "1@largest"], ["deep", "up"]
    with pytest.raises(UsageError, match="no rule of one activation and one gradient"):
        windowed_relevances(network, x, settings, methods=methods, targets=targets, layers=layers)
    targets = targets[:3]
    found = windowed_relevances(network, x, settings, methods=methods, targets=targets, layers=layers, prediction=True)
    asked = [
        (target, method, layer) for target in targets for method in methods
        for layer in (layers if "cam" in method else layers[:1])
    ]  # fmt: skip
    assert len(found.relevances) == len(asked)
    for one, (target, method, layer) in zip(found.relevances, asked, strict=True):
        alone = windowed_relevance(network, x, settings, layer=layer, target=target, method=method)
        torch.testing.assert_close(one.values, alone.values)
        torch.testing.assert_close(one.scores, alone.scores)
        assert (one.classes, one.target, one.layer, one.method) == (
            alone.classes,
            alone.target,
            alone.layer,
            alone.method,
        )


# ---------------------------------------------------------------- the score of the stitched output


def pooled_by_hand(
    network: Segmenter, volume: Tensor, c: int, roi: Sequence[int], overlap: float
) -> tuple[np.ndarray, float]:
    """Grad-CAM of the stitched score, by one graph through all windows: every window's activation is a leaf.

    The score is the sum of the stitched logit of class c where the stitched prediction is c. A channel's weight is the mean over the whole
    volume's cells of the score's gradient at them; the activation is blended. Windows must begin at whole cells.
    """
    importance = torch.from_numpy(importance_by_hand(roi, "gaussian"))
    leaves: dict[tuple[int, ...], Tensor] = {}
    total, summed = 0.0, torch.zeros(volume.shape[1:], dtype=torch.float64)
    for corner in itertools.product(
        *[starts_by_hand(n, r, overlap) for n, r in zip(volume.shape[1:], roi, strict=True)]
    ):
        box = tuple(slice(a, a + r) for a, r in zip(corner, roi, strict=True))

        def cut(_module: nn.Module, _args: object, out: Tensor, corner: tuple[int, ...] = corner) -> Tensor:
            leaves[corner] = out.detach().requires_grad_()
            return leaves[corner]

        handle = network.deep.register_forward_hook(cut)
        logits = network(volume[(slice(None), *box)][None])[0]
        handle.remove()
        amounts = [
            n for b, whole in reversed(list(zip(box, volume.shape[1:], strict=True))) for n in (b.start, whole - b.stop)
        ]
        total = total + nn.functional.pad(logits * importance, amounts)
        summed[box] += importance
    stitched = total / summed
    score = stitched[c][stitched.argmax(0) == c].sum()
    slopes = dict(zip(leaves, torch.autograd.grad(score, list(leaves.values())), strict=True))
    channels, cells = 8, [-(-n // 2) for n in volume.shape[1:]]
    pooled = [sum(float(slope[0, k].sum()) for slope in slopes.values()) / math.prod(cells) for k in range(channels)]
    result = np.zeros(cells)
    for k, weight in enumerate(pooled):
        maps = {corner: leaf.detach()[0, k].numpy() for corner, leaf in leaves.items()}
        result += weight * blended_by_hand(maps, (2.0,) * len(roi), (0.5,) * len(roi), importance.numpy())
    return result, float(score.detach())


@pytest.mark.parametrize(("sides", "roi"), [((16, 22), (8, 12)), ((12, 16, 14), (8, 16, 8))])
def test_the_exact_map_is_grad_cam_of_the_stitched_score(sides: tuple[int, ...], roi: tuple[int, ...]) -> None:
    x = torch.randn(2, 2, *sides, dtype=torch.float64)
    network = balanced(Segmenter(len(sides)).double().eval(), x)
    found = windowed_relevance(network, x, Windows(roi, 0.5, sw_batch_size=2), layer="deep", target=[1, 2], exact=True)
    for n, c in enumerate([1, 2]):
        expected, score = pooled_by_hand(network, x[n], c, roi, 0.5)
        np.testing.assert_allclose(found.values[n].numpy(), expected, rtol=1e-6, atol=1e-8 * abs(expected).max())
        assert float(found.scores[n]) == pytest.approx(score)


class Pointwise(nn.Module):
    """Cells of two voxels, features of each cell alone, and a linear head: no window's border shows."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.cells = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](2)
        self.features, self.out = conv(dims)(2, 5, 1), conv(dims)(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(
            nn.functional.interpolate(self.features(self.cells(x)).tanh(), scale_factor=2.0, mode="nearest")
        )


@pytest.mark.parametrize(("dims", "overlap"), [(2, 0.0), (2, 0.75), (3, 0.5)])
def test_the_exact_hires_cam_sums_to_the_stitched_score_less_the_bias(dims: int, overlap: float) -> None:
    network, sides = Pointwise(dims).double().eval(), {2: (20, 26), 3: (12, 20, 14)}[dims]
    x = torch.randn(1, 2, *sides, dtype=torch.float64)
    whole = relevance(network, x, layer="features", target="1@whole", method="hires-cam")
    found = windowed_relevance(
        network, x, Windows((8,) * dims, overlap), layer="features", target="1@whole", method="hires-cam"
    )
    # Windows see what the whole volume sees, so the answer is the same.
    torch.testing.assert_close(found.values, whole.values)
    bias = float(network.out.bias[1].detach()) * math.prod(sides)
    tail = relevance(network, x, layer="cells", target="1@whole")  # the score itself does not depend on the layer
    torch.testing.assert_close(found.scores, tail.scores)
    network.features.register_forward_hook(lambda _m, _a, out: out)
    values = windowed_relevance(
        PointwiseTail(network), x, Windows((8,) * dims, overlap), layer="act", target="1@whole", method="hires-cam"
    )
    assert float(values.values.sum()) == pytest.approx(float(found.scores[0]) - bias)


def test_the_exact_gradient_is_whole_also_where_windows_begin_between_cells() -> None:
    network, x = Pointwise(2).double().eval(), torch.randn(1, 2, 22, 26, dtype=torch.float64)
    gradient = rule(lambda _activation, gradient: gradient[:, 0])
    whole = relevance(network, x, layer="cells", target="1@whole", method=gradient)
    for overlap in (0.1, 0.4):  # steps of 7 and 4.8 voxels, on cells of 2
        found = windowed_relevance(
            network, x, Windows((8, 8), overlap), layer="cells", target="1@whole", method=gradient
        )
        assert float(found.values.sum()) == pytest.approx(float(whole.values.sum()), rel=0.02)


class PointwiseTail(nn.Module):
    """The same with the activation as a module, from which on all is linear."""

    def __init__(self, inner: Pointwise) -> None:
        super().__init__()
        self.inner, self.act = inner, nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        found = self.act(self.inner.features(self.inner.cells(x)))
        return self.inner.out(nn.functional.interpolate(found, scale_factor=2.0, mode="nearest"))


def test_the_exact_mode_runs_again_only_what_has_a_part_in_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = Blobs(2).eval(), blob((64, 48), (12, 12))
    layer, counts = feature_layer(network, x), counted(network, monkeypatch)
    windowed_relevance(network, x, Windows((16, 16), 0.0), layer=layer, target=1, exact=True)
    # A look, a sweep, and one window; the gradient of the score at the output, of the window's output at the layer, and of the sum that
    # stands for the score where the method is asked.
    assert counts == {"forward": 1 + 12 + 1, "backward": 3}


# ---------------------------------------------------------------- contracts


def peak_bytes(work: Callable[[], object]) -> int:
    """The largest sum of bytes that torch held at once, beyond what it held before."""
    work()  # what is loaded once is not counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("target", [1, None])
def test_memory_does_not_grow_with_the_number_of_windows(target: int | None) -> None:
    network, peaks = Segmenter(3).eval(), []
    small = torch.randn(1, 2, 24, 16, 20)
    layer = next(one for one in feature_layers(network, small[:, :, :16, :16, :16]) if one.name == "deep")
    for times in (1, 4):
        x = small.repeat(1, 1, times, 1, 1)
        peaks.append(
            peak_bytes(
                lambda x=x: windowed_relevance(network, x, Windows((16, 16, 16), 0.5), layer=layer, target=target)
            )
        )
    # Five times the windows, and only the map on cells of two voxels is longer, with its weights and what they are divided into.
    voxels = 24 * 16 * 20
    assert peaks[1] - peaks[0] < 5 * 4 * 3 * voxels / 8


def test_the_network_is_left_as_it_was() -> None:
    network, x = Segmenter(2).train(), volumes(2, 1, torch.float32)
    before = {name: (p.data_ptr(), p.requires_grad, p.grad) for name, p in network.named_parameters()}
    hooks = [len(module._forward_hooks) for module in network.modules()]
    found = windowed_relevance(network, x, Windows(ROI[2]), layer="deep", target=1)
    with pytest.raises(UsageError, match="class 9 does not exist"):
        windowed_relevance(network, x, Windows(ROI[2]), layer="deep", target=9)
    assert {name: (p.data_ptr(), p.requires_grad, p.grad) for name, p in network.named_parameters()} == before
    assert [len(module._forward_hooks) for module in network.modules()] == hooks
    assert network.training
    assert "training mode" in found.notes[0][0]


class BeforeNorm(nn.Module):
    """The last layer before the head lies in front of an instance norm, where Grad-CAM's weights cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.last, self.out = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.instance_norm(self.last(self.act(self.first(x)))))


def test_a_default_layer_that_says_nothing_is_left_for_one_that_does() -> None:
    network, x = BeforeNorm().double().eval(), volumes(2)
    found = windowed_relevances(network, x, Windows(ROI[2], 0.5), targets=[1], prediction=True)
    given = windowed_relevance(network, x, Windows(ROI[2], 0.5), layer="act", target=1)
    assert found.relevances[0].layer == "act"
    torch.testing.assert_close(found.relevances[0].values, given.values)
    with torch.no_grad():
        torch.testing.assert_close(
            found.prediction, sliding_window_inference(x, ROI[2], 1, network, overlap=0.5, mode="gaussian")
        )
    asked = windowed_relevance(network, x, Windows(ROI[2], 0.5), layer="last", target=1)
    assert any("cancels to rounding noise" in note for note in asked.notes[0])


@pytest.mark.parametrize("exact", [False, True])
def test_windows_work_inside_inference_mode_and_autocast(exact: bool) -> None:
    x = volumes(2, 1, torch.float32)
    network = balanced(Segmenter(2).eval(), x)
    expected = windowed_relevance(network, x, Windows(ROI[2]), layer="deep", target=1, exact=exact)
    with torch.inference_mode():
        found = windowed_relevance(network, x.clone(), Windows(ROI[2]), layer="deep", target=1, exact=exact)
    torch.testing.assert_close(found.values, expected.values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = windowed_relevance(network, x, Windows(ROI[2]), layer="deep", target=1, exact=exact)
    assert half.values.dtype == torch.float32
    likeness = torch.corrcoef(torch.stack([half.values.flatten(), expected.values.flatten()]))[0, 1]
    assert likeness > 0.98


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roi_size": ()}, "whole numbers of voxels"),
        ({"roi_size": 8, "overlap": 1.0}, "less than 1"),
        ({"roi_size": 8, "overlap": (0.5, -0.1)}, "less than 1"),
        ({"roi_size": 8, "mode": "cosine"}, "'constant' or 'gaussian'"),
        ({"roi_size": 8, "sigma_scale": 0.0}, "above 0"),
        ({"roi_size": 8, "padding_mode": "zeros"}, "constant, reflect"),
        ({"roi_size": 8, "sw_batch_size": 0}, "at least one window"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Windows(**settings)


class Halved(nn.Module):
    """Gives half as many voxels as it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


def test_what_windows_cannot_do_is_refused_in_words() -> None:
    x = volumes(2, 1, torch.float32)
    with pytest.raises(UsageError, match="a window's size has 3 axes and the input 2"):
        windowed_relevance(Segmenter(2), x, Windows((8, 8, 8)), layer="deep", target=1)
    with pytest.raises(UsageError, match="windows need one score for each voxel, or one for the whole window"):
        windowed_relevance(Halved(), x, Windows((8, 8)), layer="conv", target=1)
    with pytest.raises(UsageError, match="leave exact out"):
        windowed_relevance(Classifier(2).eval(), x, Windows((8, 8)), layer="block", target=1, exact=True)
    with pytest.raises(UsageError, match="no rule of one"):
        windowed_relevance(Segmenter(2).eval(), x, Windows((8, 8)), layer="deep", target="1@whole", method="score-cam")
    with pytest.raises(UsageError, match="SlidingWindowInferer without coordinates, not a SliceInferer"):
        Windows.of(SliceInferer(roi_size=(8, 8)))


def test_a_function_of_the_users_own_scores_windows_of_a_classifier_and_the_stitched_output_of_a_segmentation() -> None:
    x = volumes(2)
    classifier = Classifier(2).double().eval()
    found = windowed_relevance(classifier, x, Windows(ROI[2]), layer="block", target=lambda scores: scores[:, 3])
    given = windowed_relevance(classifier, x, Windows(ROI[2]), layer="block", target=3)
    torch.testing.assert_close(found.values, given.values)
    torch.testing.assert_close(found.scores, given.scores)
    assert (found.classes, found.score) == ((), "own")
    network = balanced(Segmenter(2).double().eval(), x)
    found = windowed_relevance(
        network, x, Windows(ROI[2]), layer="deep", target=lambda scores: scores[:, 1].flatten(1).sum(1)
    )
    given = windowed_relevance(network, x, Windows(ROI[2]), layer="deep", target="1@whole")
    torch.testing.assert_close(found.values, given.values)
    torch.testing.assert_close(found.scores, given.scores)


def test_what_was_not_looked_at_stays_so_unless_another_window_looked() -> None:
    x = volumes(2, 1).abs() + 0.1
    x[:, :, :, :9] = 0.0
    network = balanced(Segmenter(2).double().eval(), x)
    method = "occlusion(window=2, stride=2, background=0.0)"
    found = windowed_relevance(network, x, Windows((13, 12), 0.5), layer="deep", target=1, method=method)
    assert found.values[0, :, 0].isnan().all()
    assert not found.values[0, :, -1].isnan().any()
    assert not any("not finite" in note for note in found.notes[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("exact", [False, True])
def test_windows_run_where_the_network_is_and_results_lie_where_the_volume_is(exact: bool) -> None:
    network, x = Segmenter(3).double().eval(), volumes(3)
    expected = windowed_relevances(
        network, x, Windows(ROI[3]), targets=[1], layers=["deep"], exact=exact, prediction=True
    )
    found = windowed_relevances(
        network.cuda(), x, Windows(ROI[3]), targets=[1], layers=["deep"], exact=exact, prediction=True
    )
    torch.testing.assert_close(found.prediction, expected.prediction)
    torch.testing.assert_close(found.relevances[0].values, expected.relevances[0].values)
