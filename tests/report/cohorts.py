"""A small cohort, made of what `measure` gives on small made-up volumes, so that pages and figures have something true to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from medcam import Grid, Heatmap, Recipe, Source, Volume
from medcam.cohort.results import HEATMAP, CaseResult, Cohort, Comparison, Entry, SummaryRow
from medcam.validate.bootstrap import Resampling
from medcam.validate.lesions import froc
from medcam.validate.measures import CaseMeasures, Measure, Settings
from medcam.validate.measuring import baseline_maps, measure
from medcam.validate.paired import difference
from medcam.validate.statistics import design_effect, holm, mean
from medcam.validate.verdict import Verdict

SHAPE, SPACING = (22, 18, 10), (2.1, 1.7, 3.4)
AFFINE = np.array([[-2.1, 0, 0, 21.0], [0, 0, -3.4, 9.0], [0, 1.7, 0, -14.0], [0, 0, 0, 1]])
SETTINGS = Settings(draws=60, least_lesion=0.0)
HOW = Resampling(replicates=400)
RECIPE = Recipe(
    "net <b>", "ab" * 32, "grad-cam", "features", "lesion & co (class 0)", seed=7, preprocessing=("ScaleIntensity",),
    versions={"medcam": "0.3", "torch": "2.13.0"},
)  # fmt: skip
SOURCE = Source("nifti", "cd" * 32, "scan")
NASTY = "c</script><img src=x onerror=alert(1)>"


def _spot(centre: np.ndarray, width: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return np.exp(-(((index - centre) * SPACING / width) ** 2).sum(-1) / 2).astype(np.float32)


def scene(n: int) -> tuple[Volume, Volume, Heatmap]:
    """Image, lesion and heatmap of case n: bright lesions in noise, and a map that misses every third."""
    random = np.random.default_rng(n)
    centre = np.array([5 + random.integers(0, 11), 5 + random.integers(0, 8), 3 + random.integers(0, 4)])
    mask = np.zeros(SHAPE, np.uint8) if n % 7 == 6 else (_spot(centre, 3.0 + n % 4) > 0.5).astype(np.uint8)
    if n % 4 == 1 and mask.any():
        mask[1:3, 2:4, 8:9] = 1
    image = (100 + 20 * random.standard_normal(SHAPE) + 90 * mask).astype(np.float32)
    shift = np.array([7, -4, 2]) if n % 3 == 2 else random.integers(-1, 2, 3)
    relevance = _spot(np.clip(centre + shift, 0, np.array(SHAPE) - 1), 6.0) * (3 + n % 5)
    relevance += 0.05 * random.random(SHAPE).astype(np.float32)
    grid = Grid(SHAPE, AFFINE)
    source = replace(SOURCE, sha256=f"{n:064x}")
    heatmap = Heatmap(
        relevance.astype(np.float32), grid, source, replace(RECIPE, inputs=(source.sha256,)), RECIPE.target, 1.5
    )
    return Volume(image, grid, "a.u.", source), Volume(mask, grid, "label", source), heatmap


def case_result(n: int) -> CaseResult:
    volume, lesion, heatmap = scene(n)
    name = NASTY if n == 0 else f"case-{n:02d}"
    entry = Entry(n + 2, name, f"P{n // 2}", "lesion", (Path(f"images/{n}.nii.gz"),), mask=Path(f"masks/{n}.nii.gz"))
    if n == 5:
        return CaseResult(entry, error="its image <is> not there & cannot be read")
    inside, domain = lesion.voxels > 0, np.ones(SHAPE, bool)
    own = measure(heatmap.relevance, inside, spacing_mm=SPACING, settings=SETTINGS)
    maps = baseline_maps(volume.voxels, domain, spacing_mm=SPACING)
    others = {each: measure(m, inside, spacing_mm=SPACING, settings=SETTINGS) for each, m in maps.items()}
    hit = own.numbers["hit"].value
    kind = "untold" if not inside.any() else "agrees" if hit > 0.5 else "wrong"
    truth = int(inside.any())
    return CaseResult(
        entry, measures=own, baselines=others,
        trials={"deletion@blur": Measure(0.2 + 0.02 * n), "lesion_share@inpaint": Measure(0.05 * n if truth else np.nan)},
        verdict=Verdict(kind, (f"The peak hits with {hit:.2f} & more.",)),
        target=RECIPE.target, score=1.5, probability=0.5 + 0.01 * n, truth=truth, decision="TP" if truth else "FP", recipe=heatmap.recipe,
        notes=("A note with <tags> & signs.",) if n == 3 else (), heatmap=Path(f"heatmaps/{n}.nii.gz"), seconds=1.5,
    )  # fmt: skip


def cohort(count: int = 14, cases: tuple[CaseResult, ...] | None = None) -> Cohort:
    cases = cases or tuple(case_result(n) for n in range(count))
    done = [case for case in cases if case.ok]
    patients = [case.entry.patient for case in done]
    maps = [HEATMAP, *done[0].baselines]

    def of(case: CaseResult, name: str) -> CaseMeasures:
        return case.measures if name == HEATMAP else case.baselines[name]

    columns = {
        (name, each): [of(case, name).numbers[each].value for case in done]
        for name in maps
        for each in done[0].measures.numbers
    }
    facts: Mapping[str, Measure] = done[0].measures.numbers
    summary = tuple(
        SummaryRow(
            name,
            each,
            facts[each].unit,
            "all",
            mean(values, patients, how=HOW),
            design_effect(values, patients),
            facts[each].oracle,
        )
        for (name, each), values in columns.items()
    )
    apart = {
        (each, base): difference(columns[HEATMAP, each], columns[base, each], patients, how=HOW)
        for each in ("hit", "mass_in_lesion")
        for base in maps[1:]
    }
    family = holm({base: one.wilcoxon_p for (each, base), one in apart.items() if each == "hit"})
    comparisons = tuple(
        Comparison(each, facts[each].unit, base, one, one.wilcoxon_p, family[base] if each == "hit" else float("nan"))
        for (each, base), one in apart.items()
    )
    counts = {
        kind: sum(case.verdict.kind == kind for case in done) for kind in dict.fromkeys(c.verdict.kind for c in done)
    }
    return Cohort(
        cases, SETTINGS, HOW, "hit", RECIPE.model, RECIPE.model_sha256, RECIPE.method, summary, comparisons,
        {name: froc([of(case, name).findings for case in done]) for name in maps},
        {HEATMAP: 0.41, "centre": 0.1}, counts=counts,
        verdict=Verdict("agrees", ("It hits more often than its best baseline.",), ("More patients.",)),
        notes=("One case failed & was <left out>.",),
    )  # fmt: skip
