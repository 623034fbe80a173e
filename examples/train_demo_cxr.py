"""Train the demonstration model of chest films and write it as a MONAI bundle.

The lesions are ours: soft nodules implanted in the lungs of real films (NIH ChestX-ray14, given by --films) and of drawn ones, so that the
outline of each is known exactly. Films that a radiologist's report calls "Nodule" or "Mass" are left out, and no patient is in two splits.
Without --films the model learns from drawn films alone. The result is a demonstration, never a detector.

    python examples/train_demo_cxr.py --films cxr_nih --out data_samples/models/demo_cxr

DIR holds `labels*.csv` ("Image Index", "Finding Labels", "Patient ID") and the images it names, at any depth, as PNG or JPEG.

Arrays are held as i = column, j = row throughout, as `medcam` reads them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medcam.lesion_net import LesionNet
from synthetic_films import Film, FloatImage, Mask, implant_nodule, synthetic_film

SIDE = 256  # pixels of the network's input, both ways
CELL = 4  # pixels from one feature cell to the next: cell c looks at pixel 4 * c
DIAMETERS = (10.0, 45.0)  # of the implanted nodules, in pixels of the network's input

NETWORK: dict[str, Any] = {
    "_target_": "medcam.lesion_net.LesionNet",
    "spatial_dims": 2,
    "widths": [16, 24, 32, 32, 32, 32],
    "dilations": [1, 1, 1, 2, 4, 8],
}
PREPROCESSING: dict[str, Any] = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "LoadImaged", "keys": ["image"]},
        {"_target_": "EnsureChannelFirstd", "keys": ["image"]},
        {"_target_": "Resized", "keys": ["image"], "spatial_size": [SIDE, SIDE], "mode": "area"},
        {
            "_target_": "ScaleIntensityRangePercentilesd",
            "keys": ["image"],
            "lower": 1,
            "upper": 99,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        },
        {"_target_": "NormalizeIntensityd", "keys": ["image"]},
    ],
}


@dataclass
class Sample:
    """What the network is shown, with the truth about it."""

    image: Tensor  # 1 i j, preprocessed
    mask: Mask  # i j, empty where no nodule was implanted


def lung_fields(film: FloatImage) -> Mask:
    """Outline the lungs of a real film crudely: the two large dark regions that do not touch the border.

    Where that fails (white-out, odd crops), the darker part of the two boxes in which lungs usually lie is taken instead.
    """
    smooth = ndimage.gaussian_filter(film, 2.0)
    i, j = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    plausible = (np.abs(i - 0.5) > 0.07) & (np.abs(i - 0.5) < 0.42) & (j > 0.1) & (j < 0.85)
    for share in (55, 45, 35):
        dark = smooth < np.percentile(smooth[plausible], share)
        regions, _ = ndimage.label(ndimage.binary_opening(dark & (np.abs(i - 0.5) < 0.46), iterations=2))
        at_border = np.unique(np.concatenate([regions[:14].ravel(), regions[-14:].ravel(), regions[:, :6].ravel()]))
        sizes = ndimage.sum_labels(np.ones_like(regions), regions, np.arange(regions.max() + 1))
        sizes[at_border] = 0
        sizes[0] = 0
        kept = np.isin(regions, np.flatnonzero(sizes > 0.02 * SIDE**2)) & plausible
        if kept[: SIDE // 2].sum() > 0.025 * SIDE**2 and kept[SIDE // 2 :].sum() > 0.025 * SIDE**2:
            return ndimage.binary_erosion(ndimage.binary_closing(kept, iterations=4), iterations=2)
    boxes = (np.abs(np.abs(i - 0.5) - 0.22) < 0.12) & (np.abs(j - 0.42) < 0.24)
    return boxes & (smooth < np.percentile(smooth[boxes], 70))


def load_real_films(folder: Path) -> dict[str, list[Film]]:
    """Read the films without a reported nodule or mass, by patient."""
    (table,) = folder.glob("labels*.csv")
    files = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg", ".jpeg")}
    films: dict[str, list[Film]] = {}
    with table.open(newline="") as lines:
        for row in csv.DictReader(lines):
            stem = Path(row["Image Index"]).stem
            if {"Nodule", "Mass"} & set(row["Finding Labels"].split("|")) or stem not in files:
                continue
            picture = Image.open(files[stem]).convert("L")
            if picture.size != (SIDE, SIDE):
                picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
            film = np.asarray(picture, np.float32).T / 255
            films.setdefault(row["Patient ID"], []).append(Film(film, lung_fields(film)))
    return films


def draw_films(count: int, seeds: np.random.SeedSequence, quick: bool) -> list[Film]:
    """Draw synthetic films at twice the network's size (at its size if `quick`) and average them down to it."""
    films = []
    factor = 1 if quick else 2
    for seed in seeds.spawn(count):
        drawn = synthetic_film(np.random.default_rng(seed), SIDE * factor, SIDE * factor)
        blocks = drawn.absorption.reshape(SIDE, factor, SIDE, factor)
        films.append(Film(blocks.mean(axis=(1, 3), dtype=np.float32), drawn.lungs[::factor, ::factor].copy()))
    return films


def vary(film: Film, rng: np.random.Generator) -> Film:
    """Shift, scale, turn, mirror, and change the tone curve of a film."""
    scale = np.exp(rng.normal(0, 0.1, 2)).clip(0.75, 1.3)
    turn = rng.normal(0, 0.06)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - matrix @ centre + rng.normal(0, 0.03 * SIDE, 2)
    absorption = ndimage.affine_transform(film.absorption, matrix, offset, order=1, mode="nearest")
    lungs = ndimage.affine_transform(film.lungs.astype(np.uint8), matrix, offset, order=0, mode="constant") > 0
    absorption = np.clip(absorption, 0, 1) ** np.exp(rng.normal(0, 0.2))
    return Film(absorption.astype(np.float32), lungs)


def implant_some(film: Film, rng: np.random.Generator, count: int) -> tuple[FloatImage, Mask]:
    """Implant `count` nodules of random size and contrast."""
    absorption, mask = film.absorption, np.zeros(film.lungs.shape, bool)
    if not film.lungs.any():
        return absorption, mask
    low, high = np.percentile(absorption, [1, 99])
    for _ in range(count):
        diameter = float(np.exp(rng.uniform(*np.log(DIAMETERS))))
        contrast = float(rng.uniform(0.22, 0.45)) * (high - low)
        absorption, outline = implant_nodule(absorption, film.lungs, rng, diameter, contrast)
        mask |= outline
    return absorption, mask


def preprocess(film: FloatImage, steps: Compose) -> Tensor:
    """Run the bundle's own preprocessing, but for reading and resizing: the film has the network's size already."""
    return torch.as_tensor(np.asarray(steps({"image": film[None]})["image"], np.float32))


def training_sample(film: Film, rng: np.random.Generator, steps: Compose) -> Sample:
    """Make one varied sample; a nodule, or a few, in half of them."""
    varied = vary(film, rng)
    count = 0 if rng.random() < 0.5 else (1 if rng.random() < 0.6 else int(rng.integers(2, 7)))
    absorption, mask = implant_some(varied, rng, count)
    if rng.random() < 0.3:
        absorption = ndimage.gaussian_filter(absorption, rng.uniform(0.3, 0.8))
    absorption = absorption + rng.normal(0, rng.uniform(0, 0.01), absorption.shape)
    return Sample(preprocess(absorption.astype(np.float32), steps), mask)


def on_cells(mask: Tensor) -> Tensor:
    """Max-pool masks `b 1 i j` to the feature grid, each cell the five pixels about its own."""
    return functional.max_pool2d(mask, 5, stride=CELL, padding=2)


def losses(network: LesionNet, image: Tensor, mask: Tensor) -> Tensor:
    """Return the loss over locations, positives and negatives weighed towards balance, plus that of the pooled logit."""
    logits = network.location_logits(image)
    truth = on_cells(mask)
    location = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=torch.tensor(3.0))
    pooled = logits.flatten(2) * network.sharpness
    pooled = (torch.logsumexp(pooled, dim=2) - np.log(pooled.shape[2])) / network.sharpness
    present = truth.flatten(1).amax(dim=1, keepdim=True)
    return 10 * location + functional.binary_cross_entropy_with_logits(pooled, present)


def train(
    real: list[Film], drawn: list[Film], rng: np.random.Generator, steps: Compose, iterations: int, batch: int
) -> LesionNet:
    """Train on samples of which three in ten are drawn films (all, where there are no real ones)."""
    network = LesionNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=iterations + 1)
    network.train()
    running = 0.0
    for iteration in range(iterations):
        samples = []
        for _ in range(batch):
            films = drawn if not real or rng.random() < 0.3 else real
            samples.append(training_sample(films[rng.integers(len(films))], rng, steps))
        image = torch.stack([sample.image for sample in samples]).to(memory_format=torch.channels_last)
        mask = torch.stack([torch.from_numpy(sample.mask)[None].float() for sample in samples])
        loss = losses(network, image, mask)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        if (iteration + 1) % 50 == 0:
            print(f"step {iteration + 1}: loss {running / 50:.3f}", flush=True)
            running = 0.0
    return network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def full_size(location: Tensor) -> Tensor:
    """Bring a map `b 1 t u` of cells to the pixels of the image: cell c at pixel 4 * c, the last cell repeated beyond it."""
    inner = [CELL * (size - 1) + 1 for size in location.shape[2:]]
    fine = functional.interpolate(location, size=inner, mode="bilinear", align_corners=True)
    return functional.pad(fine, (0, CELL - 1, 0, CELL - 1), mode="replicate")


@torch.no_grad()
def evaluate(network: LesionNet, films: list[Film], seeds: np.random.SeedSequence, steps: Compose) -> dict[str, float]:
    """Measure on films never trained on: each once as it is, once with one nodule."""
    without: list[float] = []
    within: list[float] = []
    hits: list[bool] = []
    overlaps: list[float] = []
    for film, seed in zip(films, seeds.spawn(len(films)), strict=True):
        absorption, mask = implant_some(film, np.random.default_rng(seed), 1)
        if not mask.any():
            continue
        without.append(float(network(preprocess(film.absorption, steps)[None])))
        image = preprocess(absorption, steps)[None]
        within.append(float(network(image)))
        location = network.location_logits(image)
        i, j = np.unravel_index(int(location.argmax()), location.shape[2:])
        hits.append(bool(mask[i * CELL, j * CELL]))
        found = full_size(location)[0, 0].numpy() > 0
        overlaps.append(float((found & mask).sum() / (found | mask).sum()))
    positive, negative = np.array(within), np.array(without)
    difference = positive[:, None] - negative[None, :]
    return {
        "films": len(positive),
        "auc": float((difference > 0).mean() + 0.5 * (difference == 0).mean()),
        "sensitivity": float((positive > 0).mean()),
        "specificity": float((negative < 0).mean()),
        "peak_in_nodule": float(np.mean(hits)),
        "iou": float(np.mean(overlaps)),
    }


@torch.no_grad()
def hits_on_real_lesions(network: LesionNet, folder: Path, steps: Compose) -> tuple[int, int]:
    """Count the real nodules and masses, boxed by an expert in `boxes.csv`, whose box holds the film's hottest location.

    The boxes are in pixels of 1024; these films are never trained on, since their reports name the lesion.
    """
    table = folder / "boxes.csv"
    if not table.is_file():
        return 0, 0
    files = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    hits = count = 0
    with table.open(newline="") as lines:
        for row in csv.DictReader(lines):
            path = files.get(Path(row["Image Index"]).stem)
            if row["Finding Label"] not in ("Nodule", "Mass") or path is None:
                continue
            picture = Image.open(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            location = network.location_logits(preprocess(np.asarray(picture, np.float32).T / 255, steps)[None])
            i, j = (CELL * 1024 / SIDE * int(c) for c in np.unravel_index(int(location.argmax()), location.shape[2:]))
            x, y, width, height = (float(row[name]) for name in "xywh")
            hits += x <= i <= x + width and y <= j <= y + height
            count += 1
    return hits, count


def metadata(measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Describe the bundle in MONAI's metadata schema."""
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "monai_version": monai.__version__.split("+")[0],
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"medcam": "0.1.0"},
        "optional_packages_version": {},
        "name": "medcam demo chest X-ray",
        "task": "Is there a nodule in the lungs of this chest film?",
        "description": "A small network that finds nodules implanted in chest films, for trying explanations on. "
        "A demonstration, never a detector.",
        "authors": "the medcam authors",
        "copyright": "the medcam authors",
        "data_source": "NIH ChestX-ray14 (Wang et al., CVPR 2017) with implanted nodules; drawn films of medcam",
        "data_type": "dicom",
        "intended_use": "Demonstration and testing of medcam. Not for clinical use, nor for any judgement about a patient.",
        "eval_metrics": measured,
        "references": [
            "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on "
            "Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017."
        ],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "CR",
                    "num_channels": 1,
                    "spatial_shape": [SIDE, SIDE],
                    "dtype": "float32",
                    "value_range": [-5, 5],
                    "is_patch_data": False,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "logits",
                    "format": "classification",
                    "num_channels": 1,
                    "spatial_shape": [1],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "nodule"},
                }
            },
        },
    }


README = """# medcam demo chest X-ray

A network of {parameters:,} parameters that says whether a chest film shows a nodule in the lungs. It gives `medcam demo`, the tests and the
tutorial something real to explain. **It is a demonstration, never a detector**: it learnt from nodules that we implanted, and real
ones it mostly misses.

| | |
| --- | --- |
| network | `medcam.lesion_net.LesionNet`, 2D: convolutions, a 1x1 score for each location, a log-mean-exp pool to one logit |
| input | one frontal chest film, brighter = more absorbed (MONOCHROME2), i = column, j = row; the whole film, averaged to {side} x {side} |
| output | one logit: above 0, a nodule |
| trained on | {source} |
| nodules | implanted: soft, irregular, {low:.0f} to {high:.0f} pixels across at {side}, in the lung fields; their outlines are exact |
| made by | `examples/train_demo_cxr.py`, seed {seed}, {iterations} steps of {batch} |

## Measured

On films of patients (and drawn films) that training never saw, each once as it is and once with one nodule implanted:

| films | number | AUC | sensitivity at 0 | specificity at 0 | hottest location in the nodule | IoU of locations above 0 |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

The films that a report calls "Nodule" or "Mass" were left out of training and of these figures. {real_lesions}

## Origin

The films of the NIH Clinical Center's ChestX-ray14 set are not included here. Their providers ask that this paper be cited:
Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised
Classification and Localization of Common Thorax Diseases. CVPR 2017.
"""


def write_bundle(
    out: Path,
    network: LesionNet,
    measured: dict[str, dict[str, float]],
    source: str,
    seed: int,
    iterations: int,
    batch: int,
    real_lesions: tuple[int, int],
) -> None:
    """Write the trained network as a MONAI bundle folder."""
    for part in ("configs", "models", "docs"):
        (out / part).mkdir(parents=True, exist_ok=True)
    configs = {
        "metadata.json": metadata(measured),
        "inference.json": {"network_def": NETWORK, "preprocessing": PREPROCESSING},
    }
    for name, config in configs.items():
        (out / "configs" / name).write_text(json.dumps(config, indent=2) + "\n")
    torch.save(
        {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()},
        out / "models" / "model.pt",
    )
    rows = "\n".join(
        f"| {name} | {m['films']} | {m['auc']:.3f} | {m['sensitivity']:.2f} | {m['specificity']:.2f} "
        f"| {m['peak_in_nodule']:.2f} | {m['iou']:.2f} |"
        for name, m in measured.items()
    )
    hits, count = real_lesions
    text = README.format(
        parameters=sum(p.numel() for p in network.parameters()),
        side=SIDE,
        source=source,
        low=DIAMETERS[0],
        high=DIAMETERS[1],
        seed=seed,
        iterations=iterations,
        batch=batch,
        rows=rows,
        real_lesions=f"Of {count} real nodules and masses that an expert boxed, the hottest location fell in {hits}."
        if count
        else "",
    )
    (out / "docs" / "README.md").write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, train, measure, write."""
    parser = argparse.ArgumentParser(description="Train the demonstration model of chest films.")
    parser.add_argument(
        "--films", type=Path, help="folder with labels*.csv and the films it names; none: drawn films alone"
    )
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds, which learns nothing")
    arguments = parser.parse_args(argv)

    started = time.monotonic()
    torch.manual_seed(arguments.seed)
    for_split, for_training, for_drawn, for_drawn_held_out, for_evaluation = np.random.SeedSequence(
        arguments.seed
    ).spawn(5)
    iterations, batch, drawn_count, held_out_count = (2, 2, 2, 2) if arguments.quick else (arguments.steps, 8, 80, 40)

    parser_of_bundle = ConfigParser({"preprocessing": PREPROCESSING})
    steps = Compose(parser_of_bundle.get_parsed_content("preprocessing").transforms[3:])

    real: list[Film] = []
    real_held_out: list[Film] = []
    source = f"{drawn_count} drawn films"
    if arguments.films is not None:
        by_patient = load_real_films(arguments.films)
        patients = sorted(by_patient)
        np.random.default_rng(for_split).shuffle(patients)
        held_out = set(patients[: max(1, len(patients) // 5)])
        if arguments.quick:
            patients, held_out = patients[:6], set(patients[:2])
        real = [film for patient in patients if patient not in held_out for film in by_patient[patient]]
        real_held_out = [film for patient in patients if patient in held_out for film in by_patient[patient]]
        source = f"{len(real)} films of NIH ChestX-ray14 (Wang et al., 2017) and {drawn_count} drawn films"
    drawn = draw_films(drawn_count, for_drawn, arguments.quick)
    print(f"trains on {source}; {time.monotonic() - started:.0f} s", flush=True)

    network = train(real, drawn, np.random.default_rng(for_training), steps, iterations, batch)
    print(f"trained; {time.monotonic() - started:.0f} s", flush=True)

    held_out_sets = {"NIH, held-out patients": real_held_out} if real_held_out else {}
    held_out_sets["drawn, held out"] = draw_films(held_out_count, for_drawn_held_out, arguments.quick)
    measured = {
        name: evaluate(network, films, seeds, steps)
        for (name, films), seeds in zip(held_out_sets.items(), for_evaluation.spawn(len(held_out_sets)), strict=True)
    }
    for name, figures in measured.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    boxed = hits_on_real_lesions(network, arguments.films, steps) if arguments.films is not None else (0, 0)
    write_bundle(arguments.out, network, measured, source, arguments.seed, iterations, batch, boxed)
    print(f"wrote {arguments.out}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
