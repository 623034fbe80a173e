"""Published ways of counting give their published numbers, and pictures are counted as OpenCV does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import auc, precision_recall_curve
from validate.scenes import SHAPE, lesion_of, map_of

from medcam.errors import InputError, UsageError
from medcam.validate.boxes import boxes_iou
from medcam.validate.protocols import PROTOCOLS, arun, chexlocalize, protocol, se3d, wsol
from medcam.validate.protocols.planes import above_otsu, contours, eight_bit, min_max, redrawn

FILM = (19, 14, 1)


def film(seed: int) -> tuple[np.ndarray, np.ndarray]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(FILM[:2]), 1.5)[..., None]
    lesion = np.zeros(FILM, bool)
    lesion[3:9, 4:8] = lesion[12:15, 9:13] = True
    return noise.astype(np.float32), lesion


# SE3D's notebook: a mask of two boxes, and maps of both, of the small one, of the large one, and of both moved by a voxel.


def volumes() -> tuple[np.ndarray, list[np.ndarray]]:
    truth = np.zeros((20, 20, 20), bool)
    truth[:3, :3, :3] = truth[-4:, -4:, -2:] = True
    both, small, large, moved = (np.zeros(truth.shape, np.float32) for _ in range(4))
    both[truth] = 0.9
    small[:3, :3, :3] = large[-4:, -4:, -2:] = 0.9
    moved[1:4, :3, :3] = moved[-5:-1, -4:, -2:] = 0.9
    return truth, [both, small, large, moved]


SE3D_VOLUMES = [
    ((100, 100, 100), (100, 100, 100), 100.0),
    ((0, 0, 0), (100, 100, 100), 46.16),
    ((100, 100, 100), (100, 100, 100), 54.57),
    ((100, 100, 0), (100, 100, 0), 50.89),
]


@pytest.mark.parametrize("n", range(4))
def test_the_published_volumes_of_se3d_give_their_published_numbers(n: int) -> None:
    truth, maps = volumes()
    found = se3d.cohort([se3d.stretched_case(maps[n], truth)])
    first, second, vxap = SE3D_VOLUMES[n]
    assert tuple(found[f"Max3DBoxAcc@{d:g}"] for d in (0.3, 0.5, 0.7)) == first
    assert tuple(found[f"Max3DBoxAccV2@{d:g}"] for d in (0.3, 0.5, 0.7)) == second
    assert found["VxAP"] == pytest.approx(vxap, abs=5e-3)
    if n == 1:
        assert found["VxAP"] == pytest.approx(46.16271186, abs=1e-8)


SE3D_FILMS = [
    ((100, 100, 100), (100, 100, 100), 100.0),
    ((0, 0, 0), (100, 100, 100), 40.00),
    ((100, 100, 100), (100, 100, 100), 66.25),
    ((100, 100, 0), (100, 100, 0), 30.04),
]


@pytest.mark.parametrize("n", range(4))
def test_their_twins_in_two_dimensions_do_too(n: int) -> None:
    truth = np.zeros((20, 20), bool)
    truth[:3, :3] = truth[-4:, -4:] = True
    both, small, large, moved = (np.zeros(truth.shape, np.float32) for _ in range(4))
    both[truth] = 1
    small[:3, :3] = large[-4:, -4:] = 1
    moved[1:4, 1:4] = moved[-5:-1, -5:-1] = 1
    map_ = (both, small, large, moved)[n]
    boxes, largest = wsol.estimated_boxes(truth)
    one, _ = wsol.box_curves(map_, boxes[[largest]], se3d.THRESHOLDS)
    _, any_of_all = wsol.box_curves(map_, boxes, se3d.THRESHOLDS)
    assert tuple(wsol.box_accuracies([one])) == SE3D_FILMS[n][0]
    assert tuple(wsol.box_accuracies([any_of_all])) == SE3D_FILMS[n][1]
    inside, outside = wsol.histograms(map_, truth, se3d.THRESHOLDS)
    assert wsol.pooled_precision(inside, outside) == pytest.approx(SE3D_FILMS[n][2], abs=5e-3)


def test_se3d_calls_a_piece_one_voxel_thick_the_smallest_and_puts_an_empty_mask_at_the_origin() -> None:
    truth = np.zeros((12, 9, 7), bool)
    truth[1:11, 1:8, 3] = truth[0:2, 0:2, 5:7] = True
    thick = np.zeros(truth.shape, np.float32)
    thick[0:2, 0:2, 5:7] = 1
    assert se3d.cohort([se3d.stretched_case(thick, truth)])["Max3DBoxAcc"] == 100
    corner = np.zeros(truth.shape, np.float32)
    corner[0, 0, 0] = 1
    blank = se3d.stretched_case(corner, np.zeros(truth.shape, bool))
    assert (blank.any_piece == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_se3d_counts_at_each_threshold_as_if_it_were_labelled_and_selected_alone(seed: int) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((13, 17, 11)), seed / 2)
    stretched = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    truth = noise > np.quantile(noise, 0.9)
    found = se3d.stretched_case(stretched, truth)
    grey, truth_boxes, biggest = (255 * stretched).astype(np.uint8), *boxes_of(truth)
    for n, t in enumerate(np.arange(0, 1, 0.01)):
        boxes, largest = boxes_of(grey > t * int(grey.max()))
        fit = boxes_iou(boxes, truth_boxes)
        assert (found.largest[n], found.any_piece[n]) == (fit[largest, biggest], fit.max())
    for n, t in enumerate(np.linspace(0, 1, 100)):
        assert found.f1_selected[n] == (stretched >= np.float32(t)).sum()
        assert found.f1_hits[n] == ((stretched >= np.float32(t)) & truth).sum()


def boxes_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, 2))
    boxes = np.array([[(s.start, s.stop - 1) for s in piece] for piece in ndimage.find_objects(labels)])
    return boxes, int(np.argmax((boxes[..., 1] - boxes[..., 0]).prod(1)))


def test_se3d_joins_voxels_by_edges_and_not_by_corners() -> None:
    map_ = np.zeros((6, 7, 8), np.float32)
    map_[1, 1, 1] = map_[2, 2, 2] = 1
    truth = np.zeros(map_.shape, bool)
    truth[1:3, 1:3, 1:3] = True
    assert se3d.stretched_case(map_, truth).any_piece.max() == pytest.approx(1 / 8)
    map_[2, 2, 2], map_[1, 2, 2] = 0, 1
    assert se3d.stretched_case(map_, truth).any_piece.max() == pytest.approx(4 / 8)


def test_the_f1_of_se3d_pools_voxels_of_all_cases() -> None:
    truth, maps = volumes()
    cases = [se3d.stretched_case(m, truth) for m in (maps[0], maps[3])]
    scores, truths = np.concatenate([maps[0].ravel(), maps[3].ravel()]), np.concatenate([truth.ravel()] * 2)
    best = max(
        2 * ((scores >= t) & truths).sum() / ((scores >= t).sum() + truths.sum()) for t in np.linspace(0, 1, 100)
    )
    assert se3d.max_f1(cases) == pytest.approx(best)


def test_the_mass_concentration_of_se3d_replaces_what_it_should_add() -> None:
    def half(mass_first: float, mass_last: float, first: bool) -> se3d.Case:
        map_, truth = np.zeros((8, 5, 3), np.float32), np.zeros((8, 5, 3), bool)
        map_[0, 0, 0], map_[7, 0, 0] = mass_first, mass_last
        truth[1 if first else 6, 1, 1] = True
        return se3d.stretched_case(map_, truth)

    cases = [half(0.5, 0.25, True), half(0.25, 0.75, True), half(0.125, 1.0, False)]
    # Right: 0.5 + 0.25, then replaced by 1; wrong: 0.25, replaced by 0.75, plus 0.125. As stated it would be 1.75 / 2.875.
    assert se3d.mass_concentration(cases) == pytest.approx(1.0 / 1.875)
    # Another order, another number.
    assert se3d.mass_concentration(cases[::-1]) == pytest.approx((1.0 + 0.25 + 0.5) / (1.0 + 0.25 + 0.5 + 0.25))
    whole = np.zeros((8, 5, 3), bool)
    whole[0, 0, 0] = whole[7, 0, 0] = True
    assert np.isnan(se3d.mass_concentration([se3d.stretched_case(np.zeros((8, 5, 3), np.float32), whole)]))


# The unit cases of the evaluation code of weakly supervised localization.

UNIMODAL = [
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.4, 0.4, 0.4, 0.6],
    [0.0, 0.4, 1.0, 0.8, 0.6],
    [0.0, 0.4, 0.4, 0.4, 0.6],
]
MULTIMODAL = [
    [0.4, 0.0, 0.2, 0.2, 0.2],
    [0.4, 0.4, 0.0, 0.4, 0.0],
    [0.0, 0.0, 0.0, 0.4, 0.0],
    [1.0, 0.6, 0.8, 0.2, 0.2],
]
UNIMODAL_BOXES = [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]
MULTIMODAL_BOXES = [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]


@pytest.mark.parametrize(("map_", "boxes"), [(UNIMODAL, UNIMODAL_BOXES), (MULTIMODAL, MULTIMODAL_BOXES)])
def test_the_published_tables_of_boxes_come_out(map_: list[list[float]], boxes: list[list[int]]) -> None:
    grey = (np.array(map_) * 255).astype(np.uint8)
    for threshold, expected in zip(np.arange(0, 1, 0.2), boxes, strict=True):
        found, largest = wsol.estimated_boxes(grey > int(threshold * grey.max()))
        assert found[largest].tolist() == expected


def test_boxes_overlap_as_published_and_an_empty_map_has_a_box_at_the_origin() -> None:
    assert wsol.multiple_iou(np.array([[1, 2, 5, 6]]), np.array([[3, 1, 4, 5]]))[0, 0] == pytest.approx(8 / 27)
    np.testing.assert_array_equal(
        wsol.multiple_iou(np.array([[1, 1, 3, 3], [4, 4, 5, 5]]), np.array([[1, 1, 3, 3], [4, 4, 5, 5]])), np.eye(2)
    )
    zero = np.zeros((3, 4), np.int64)
    assert (wsol.multiple_iou(zero, np.zeros((5, 4), np.int64)) == 1).all()
    found, largest = wsol.estimated_boxes(np.zeros((3, 3), bool))
    assert (found.tolist(), largest) == ([[0, 0, 0, 0]], 0)


@pytest.mark.parametrize(("hits", "size"), [(43031, 50176), (833, 50175), (347, 14256)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_has_the_prevalence_as_pixel_average_precision(hits: int, size: int, value: float) -> None:
    truth = np.zeros(size, bool)
    truth[:hits] = True
    inside, outside = wsol.histograms(np.full(size, value), truth, np.arange(0, 1, 0.01))
    assert wsol.pooled_precision(inside, outside) == pytest.approx(100 * hits / size)


def test_a_perfect_map_scores_all_and_no_truth_at_all_is_refused() -> None:
    _, lesion = film(0)
    found = wsol.cohort([wsol.case(lesion.astype(np.float32), lesion)])
    # Boxes of contours end one pixel behind the last, so that even these do not fit: 24 of 35 pixels and 12 of 20, below 0.7.
    assert (found["PxAP"], found["MaxBoxAcc"], found["MaxBoxAccV2"]) == (100, 100, pytest.approx(200 / 3))
    with pytest.raises(InputError, match="no image holds an object"):
        wsol.pooled_precision(np.zeros(5, np.int64), np.ones(5, np.int64))
    with pytest.raises(InputError, match="no lesion"):
        wsol.case(film(0)[0], np.zeros(FILM, bool))
    with pytest.raises(InputError, match="at least"):
        wsol.cohort([])


def test_wsol_counts_its_bins_from_stretched_maps() -> None:
    relevance, lesion = film(3)
    one, other = (wsol.case(r.astype(np.float32), lesion) for r in (relevance, relevance * 4 + 8))
    np.testing.assert_array_equal(one.largest, other.largest)
    assert one.inside.sum() == lesion.sum()
    assert one.inside.sum() + one.outside.sum() == lesion.size


# What pictures go through.


def picture(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = generator.integers(3, 24, 2)
    return eight_bit(min_max(ndimage.gaussian_filter(generator.standard_normal(shape), generator.uniform(0, 1.5)), "x"))


def test_pictures_are_counted_as_opencv_and_pillow_do() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an oracle of this test only; install medcam[bench]")
    from PIL import Image, ImageDraw

    for seed in range(150):
        grey = picture(seed)
        theirs = cv2.threshold(grey, 0, int(grey.max()), cv2.THRESH_OTSU)[1] > 0
        np.testing.assert_array_equal(above_otsu(grey), theirs)
        mask = grey > np.random.default_rng(seed).integers(0, 255)
        found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        canvas = Image.new("1", (grey.shape[1], grey.shape[0]))
        for contour in (c for c in found if len(c) > 1):
            ImageDraw.Draw(canvas).polygon([tuple(int(v) for v in p[0]) for p in contour], outline=1, fill=1)
        np.testing.assert_array_equal(redrawn(mask), np.array(canvas))
        if found:
            last = np.array(grey.shape[::-1]) - 1
            rects = [cv2.boundingRect(c) for c in found]
            boxes = [(x, y, *np.minimum((x + w, y + h), last).tolist()) for x, y, w, h in rects]
            ours, largest = wsol.estimated_boxes(mask)
            assert sorted(map(tuple, ours.tolist())) == sorted(boxes)
            areas = [cv2.contourArea(c) for c in found]
            assert tuple(ours[largest].tolist()) == boxes[int(np.argmax(areas))]
            assert contours(mask).area == max(areas)


def test_redrawing_fills_holes_and_drops_single_pixels() -> None:
    mask = np.zeros((9, 11), bool)
    mask[1:6, 1:7] = True
    mask[3, 3:5] = False
    mask[7, 9] = True
    mask[8, 0:2] = True
    expected = mask.copy()
    expected[3, 3:5], expected[7, 9] = True, False
    np.testing.assert_array_equal(redrawn(mask), expected)


def test_contours_count_the_rims_of_holes_as_boxes_of_their_own() -> None:
    mask = np.zeros((9, 11), bool)
    mask[1:6, 1:7] = True
    mask[3, 3:5] = False
    assert contours(mask).boxes.tolist() == [[1, 1, 7, 6], [2, 2, 6, 5]]
    assert (contours(mask).largest, contours(mask).area) == (0, 20.0)


# CheXlocalize.


def test_chexlocalize_takes_the_first_of_tied_maxima_row_by_row() -> None:
    relevance, lesion = np.zeros(FILM, np.float32), film(0)[1]
    relevance[1, 5], relevance[5, 5] = 1, 1  # of one row, j = 5; only the second lies in the lesion
    assert chexlocalize.case(relevance, lesion).hit == 0
    relevance[5, 4] = 1  # the row above
    assert chexlocalize.case(relevance, lesion).hit == 1
    assert np.isnan(chexlocalize.case(relevance, np.zeros(FILM, bool)).hit)


def test_chexlocalize_counts_a_negative_film_as_zero_or_not_at_all() -> None:
    relevance, lesion = film(1)
    none = chexlocalize.case(relevance, np.zeros(FILM, bool))
    assert (np.isnan(none.iou), none.iou_all) == (True, 0)
    flat = chexlocalize.case(np.ones(FILM, np.float32), lesion)
    assert (np.isnan(flat.iou), flat.iou_all) == (True, 0)
    assert np.isnan(chexlocalize.case(np.ones(FILM, np.float32), np.zeros(FILM, bool)).iou_all)


def test_chexlocalize_stretches_cuts_off_to_eight_bits_and_redraws() -> None:
    relevance, lesion = film(2)
    grey = (255 * ((relevance - relevance.min()) / (relevance.max() - relevance.min()))).astype(np.uint8)[:, :, 0].T
    drawn = redrawn(above_otsu(grey))
    truth = lesion[:, :, 0].T
    assert chexlocalize.case(relevance, lesion).iou == pytest.approx((drawn & truth).sum() / (drawn | truth).sum())


def test_chexlocalize_tunes_over_seven_thresholds_that_a_pixel_must_exceed() -> None:
    assert len(chexlocalize.CANDIDATES) == 7
    relevance, lesion = np.zeros(FILM, np.float32), film(0)[1]
    relevance[lesion] = 1.0
    relevance[0, 0] = 0.55
    relevance[16, 1] = 0.5
    assert chexlocalize.iou_at(relevance, lesion, 0.5) == pytest.approx(lesion.sum() / (lesion.sum() + 1))
    assert chexlocalize.tuned_threshold([relevance, relevance], [lesion, lesion]) == pytest.approx(0.6)
    assert np.isnan(chexlocalize.iou_at(relevance, np.zeros(FILM, bool), 0.5))


def test_the_bootstrap_of_chexlocalize_prints_the_25th_and_975th_of_1000_replicates() -> None:
    values = np.round(np.random.default_rng(4).random(12), 2)
    values[[2, 7]] = np.nan
    state = np.random.RandomState(0)
    means = np.sort([np.nanmean(values[state.choice(12, size=12, replace=True)]) for _ in range(1000)])
    found = chexlocalize.bootstrap(values.tolist())
    assert found == (round(means[24], 3), round(means.mean(), 3), round(means[974], 3))
    # Of two films, one of them undefined, replicates without any value sort last and reach the upper bound.
    lower, _, upper = chexlocalize.bootstrap([0.4, float("nan")])
    assert (lower, np.isnan(upper)) == (0.4, True)


# Arun et al.


def test_the_trapezoid_of_arun_is_scikit_learns() -> None:
    for seed in range(5):
        for decimals in (None, 1, 0):
            relevance, lesion = map_of(seed, decimals=decimals), lesion_of()
            precision, recall, _ = precision_recall_curve(lesion.ravel(), relevance.ravel())
            assert arun.case(relevance, lesion) == pytest.approx(auc(recall, precision), abs=1e-12)


def test_the_trapezoid_of_a_map_of_two_values_promises_too_much() -> None:
    lesion = lesion_of()
    binary = np.zeros(SHAPE, np.float32)
    binary[lesion] = 1
    binary[4:6] = 0
    hits, selected = (binary.astype(bool) & lesion).sum(), (binary > 0).sum()
    recall, precision, p = hits / lesion.sum(), hits / selected, lesion.mean()
    assert arun.case(binary, lesion) == pytest.approx(recall * (1 + precision) / 2 + (1 - recall) * (precision + p) / 2)
    assert arun.case(binary, lesion) > recall * precision + (1 - recall) * p + 0.1
    assert np.isnan(arun.case(binary, np.zeros(SHAPE, bool)))
    assert arun.cohort([0.5, 0.7, float("nan")]) == {"AUPRC": pytest.approx(0.6), "AUPRC_sd": pytest.approx(0.1)}


# The table.


@pytest.mark.parametrize("name", ["chexlocalize", "wsol", "se3d", "arun"])
def test_each_protocol_counts_a_cohort_and_refuses_gaps(name: str) -> None:
    counted = protocol(name)
    one, lesion = film(5) if name != "se3d" else (map_of(5), lesion_of())
    other = one[::-1].copy()
    numbers = counted.cohort([counted.case(one, lesion), counted.case(other, lesion)])
    assert numbers
    assert all(isinstance(value, float) for value in numbers.values())
    gap = one.copy()
    gap[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not looked at everywhere"):
        counted.case(gap, lesion)
    if name in ("chexlocalize", "wsol"):
        with pytest.raises(InputError, match="counts on films"):
            counted.case(map_of(0), lesion_of())


def test_an_unknown_protocol_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UsageError, match=", ".join(PROTOCOLS)):
        protocol("quantus")
