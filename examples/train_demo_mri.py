"""Train the 3D demonstration model on synthetic heads and write it as a MONAI bundle.

    python examples/train_demo_mri.py --out data_samples/models/demo_mri

The network learns from two losses: each feature cell is asked whether a lesion lies in it, and the whole head whether it has one. It is
then measured on heads that it has not seen. Everything is drawn from one seed; a full run takes about ten minutes of CPU time,
`--quick` a few seconds for a model that knows nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Generator, Tensor
from torch.nn import functional as F

from medcam.lesion_net import LesionNet
from synthetic_heads import Anatomy, Head, load_anatomy, random_head

SHAPE = (96, 112, 96)
CROP = (48, 56, 48)
# Two convolutions of stride 2, kernel 3 and padding 1: feature cell c is centred on voxel 4 c exactly.
CELL = 4

INFERENCE: dict[str, Any] = {
    "network_def": {
        "_target_": "medcam.lesion_net.LesionNet",
        "spatial_dims": 3,
        "widths": [12, 24, 32, 32],
        "sharpness": 4.0,
        "dilations": [1, 1, 1, 2],
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "keys": "image",
                "lower": 1,
                "upper": 90,
                "b_min": 0.0,
                "b_max": 1.0,
            },
        ],
    },
}

NOTICE = """The synthetic heads are built on the ICBM 2009a nonlinear symmetric template as shipped in nilearn:

> Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University. Permission
> to use, copy, modify, and distribute this software and its documentation for any purpose and without fee is hereby granted, provided
> that the above copyright notice appear in all copies. The authors and McGill University make no representations about the suitability
> of this software for any purpose. It is provided "as is" without express or implied warranty. The authors are not responsible for any
> data loss, equipment damage, property loss, or injury to subjects or patients resulting from the use or misuse of this software package.

V.S. Fonov, A.C. Evans, K. Botteron, C.R. Almli, R.C. McKinstry, D.L. Collins and BDCG, Unbiased average age-appropriate atlases for
pediatric studies, NeuroImage 54(1), 2011. V.S. Fonov, A.C. Evans, R.C. McKinstry, C.R. Almli and D.L. Collins, Unbiased nonlinear average
age-appropriate brain templates from birth to adulthood, NeuroImage 47 supplement 1, 2009.
"""


class Preprocessing:
    """The bundle's own preprocessing, less the reading of the file: what is trained on is what is deployed on."""

    def __init__(self) -> None:
        config = json.loads(json.dumps(INFERENCE["preprocessing"]))
        config["transforms"] = [
            t for t in config["transforms"] if t["_target_"] not in ("LoadImaged", "EnsureChannelFirstd")
        ]
        self.compose = ConfigParser({"preprocessing": config}).get_parsed_content("preprocessing")

    def __call__(self, head: Head) -> Tensor:
        """Return the head as the network takes it, `1 x y z`."""
        image = MetaTensor(head.image[None], affine=torch.as_tensor(head.affine))
        return self.compose({"image": image})["image"].as_tensor().float()


def cut(image: Tensor, lesion: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Cut a random crop, mirrored at random; it holds the lesion's middle where there is a lesion. Both are `1 x y z`."""
    middle = lesion[0].nonzero().float().mean(dim=0) if lesion.any() else None
    box = [slice(None)]
    for axis, (whole, part) in enumerate(zip(image.shape[1:], CROP, strict=True)):
        low, high = 0, whole - part
        if middle is not None:
            low, high = (min(max(int(middle[axis]) - inset, 0), whole - part) for inset in (part - 8, 8))
        start = int(torch.randint(low, high + 1, (), generator=generator))
        box.append(slice(start, start + part))
    mirror = [1] if torch.rand((), generator=generator) < 0.5 else []
    return image[tuple(box)].flip(mirror), lesion[tuple(box)].flip(mirror)


def training_crops(anatomy: Anatomy, generator: Generator, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches without end: image and lesion, each `6 1 x y z`.

    Three crops come from heads with a lesion and hold it, three from heads without. Every other batch brings a new head; the rest are
    drawn from the latest ones.
    """
    preprocessing = Preprocessing()
    kept: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
    for step in itertools.count():
        for with_lesion, heads in kept.items():
            if not heads or step % 4 == 2 * with_lesion:
                head = random_head(anatomy, generator, with_lesion, shape)
                kept[with_lesion] = [*heads[-59:], (preprocessing(head), head.lesion[None])]
        batch = []
        for heads in kept.values():
            picks = [len(heads) - 1, *torch.randint(len(heads), (2,), generator=generator).tolist()]
            batch += [cut(*heads[pick], generator) for pick in picks]
        images, lesions = zip(*batch, strict=True)
        yield torch.stack(images), torch.stack(lesions).float()


def lesion_coverage(lesion: Tensor) -> Tensor:
    """Return the share of each feature cell that the lesion fills, `b 1 *t`: the cell is the five voxels about its centre on each axis."""
    return F.avg_pool3d(lesion, CELL + 1, stride=CELL, padding=CELL // 2, count_include_pad=True)


def losses(network: LesionNet, image: Tensor, lesion: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the loss of the cells and that of the whole images.

    The cells inside the lesion, in the measure in which it fills them, count as much as all others together; the cells outside that look
    most like a lesion are counted once more, so that a single false alarm in a whole head is seen. Every lesion counts the same, large or
    small. `cells` is how many cells a whole head has: a crop is scored as a head that is blank elsewhere.
    """
    logits = network.location_logits(image)
    coverage = lesion_coverage(lesion)
    inside, outside = coverage, (coverage == 0).float()
    has_lesion = (lesion.flatten(1).amax(dim=1, keepdim=True) > 0).float()
    miss = (F.softplus(-logits) * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1).clamp_min(1e-6)
    alarm = F.softplus(logits) * outside
    worst = alarm.flatten(1).topk(min(24, alarm[0].numel())).values.mean()
    each = miss.sum() / has_lesion.sum().clamp_min(1) + alarm.sum() / outside.sum() + 0.5 * worst
    pooled = ((logits.flatten(2) * network.sharpness).logsumexp(dim=2) - math.log(cells)) / network.sharpness
    return each, F.binary_cross_entropy_with_logits(pooled, has_lesion)


def train(anatomy: Anatomy, seed: int, steps: int, shape: tuple[int, ...]) -> LesionNet:
    """Train the network from scratch."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    arguments = {key: value for key, value in INFERENCE["network_def"].items() if key != "_target_"}
    network = LesionNet(**arguments)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    network.train()
    for step, (image, lesion) in zip(range(steps), training_crops(anatomy, generator, shape), strict=False):
        cells, whole = losses(network, image, lesion, math.prod(-(-n // CELL) for n in shape))
        optimizer.zero_grad()
        (cells + 0.3 * whole).backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step:4d}  cells {cells.item():.3f}  whole {whole.item():.3f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    return network.eval()


def peak_voxel(network: LesionNet, image: Tensor) -> tuple[int, ...]:
    """Return the voxel under the centre of the cell that looks most like a lesion; `image` is `1 x y z`."""
    with torch.no_grad():
        logits = network.location_logits(image[None])[0, 0]
    cell = np.unravel_index(int(logits.argmax()), logits.shape)
    return tuple(int(c) * CELL for c in cell)


def score_heads(
    network: LesionNet, anatomy: Anatomy, seed: int, count: int, shape: tuple[int, ...]
) -> list[dict[str, float | bool]]:
    """Score new heads, every other one with a lesion."""
    generator = Generator().manual_seed(seed)
    preprocessing = Preprocessing()
    rows: list[dict[str, float | bool]] = []
    for number in range(count):
        head = random_head(anatomy, generator, number % 2 == 0, shape)
        image = preprocessing(head)
        with torch.no_grad():
            logit = float(network(image[None]))
        peak = peak_voxel(network, image)
        cell = tuple(slice(max(0, p - CELL // 2), p + CELL // 2 + 1) for p in peak)
        rows.append(
            {
                "lesion": head.has_lesion,
                "logit": logit,
                "diameter": float((head.lesion.sum() * 8 * 6 / np.pi) ** (1 / 3)),
                "peak_in": bool(head.lesion[peak]),
                "cell_in": bool(head.lesion[cell].any()),
            }
        )
    return rows


def measure(rows: Sequence[dict[str, float | bool]]) -> dict[str, float]:
    """Sum up scored heads: area under the ROC curve, the two error rates at logit 0, and where the peaks fall."""
    with_lesion = [row for row in rows if row["lesion"]]
    positive = np.array([row["logit"] for row in with_lesion])
    negative = np.array([row["logit"] for row in rows if not row["lesion"]])
    pairs = positive[:, None] - negative[None]
    large = [row for row in with_lesion if row["diameter"] >= 10]
    return {
        "heads": len(rows),
        "auc": float(np.mean((pairs > 0) + 0.5 * (pairs == 0))),
        "sensitivity_at_0": float((positive > 0).mean()),
        "specificity_at_0": float((negative <= 0).mean()),
        "peak_voxel_in_lesion": float(np.mean([row["peak_in"] for row in with_lesion])),
        "peak_voxel_in_lesion_from_10_mm": float(np.mean([row["peak_in"] for row in large])) if large else float("nan"),
        "peak_cell_on_lesion": float(np.mean([row["cell_in"] for row in with_lesion])),
    }


def centre_logit(network: LesionNet, rows: Sequence[dict[str, float | bool]]) -> None:
    """Move the bias so that logit 0 separates heads with a lesion from heads without as well as one shift can."""
    logits = np.array([row["logit"] for row in rows])
    lesion = np.array([row["lesion"] for row in rows])
    shifts = np.linspace(-4, 4, 161)
    loss = [np.logaddexp(0, np.where(lesion, -1, 1) * (logits + shift)).mean() for shift in shifts]
    with torch.no_grad():
        network.score.bias += float(shifts[int(np.argmin(loss))])  # the pool passes a shift on unchanged


def metadata(measured: dict[str, float]) -> dict[str, Any]:
    """Return the bundle's metadata, in MONAI's schema."""
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": list(SHAPE),
        "dtype": "float32",
        "value_range": [0, 2],
        "is_patch_data": False,
        "channel_def": {"0": "image"},
    }
    pred = {
        "type": "logits",
        "format": "classification",
        "num_channels": 1,
        "spatial_shape": [1],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {"0": "lesion"},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "first version"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": "medcam demo MRI",
        "task": "Bright lesion in a head MRI, yes or no",
        "description": "A small 3D classifier trained on synthetic heads with an implanted bright lesion, to demonstrate explanations",
        "authors": "The medcam developers",
        "copyright": "Copyright (c) The medcam developers",
        "data_source": "Synthetic heads drawn from the MNI152 tissue maps (ICBM 2009a) that ship in nilearn",
        "data_type": "nibabel",
        "image_classes": "single channel, MR, 2 mm, intensities scaled by percentiles",
        "label_classes": "single logit, positive where a lesion is present",
        "pred_classes": "single logit, positive where a lesion is present",
        "eval_metrics": {name: round(value, 3) for name, value in measured.items() if np.isfinite(value)},
        "intended_use": "Demonstration of explanation methods on synthetic data. Never a detector; not for diagnosis.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def readme(measured: dict[str, float], seed: int, steps: int) -> str:
    """Return the bundle's description."""
    m = measured
    return f"""# medcam demo MRI

A small 3D network (`medcam.lesion_net.LesionNet`, four convolutions and a log-mean-exp pool) that says whether a head MRI holds a bright
lesion. **It is a demonstration on synthetic data, never a detector, and not for diagnosis**: it exists so that the explanations of
`medcam` can be tried on a real trained network whose right answer is known.

## Input and output

One MR volume of a head, T1-like or FLAIR-like, brought by `configs/inference.json` to RAS+ axes, 2 mm voxels and intensities scaled
from the 1st and 90th percentile of the whole volume to 0 and 1 (not clipped; the 90th lies in
the brain, whether or not the scalp is bright or stripped). One logit: positive means that a lesion is present.

## Training

`examples/train_demo_mri.py --seed {seed} --steps {steps}`, on heads drawn by `examples/synthetic_heads.py`: random pose, deformation,
tissue intensities, bias field, blur and noise; half of them with one bright lesion of 6 to 25 mm in the brain; in all of them a bright
scalp and vessel-like bright spots outside the brain.

## Measured

On {int(m["heads"])} synthetic heads not seen in training, half of them with a lesion:

| figure | value |
| --- | --- |
| area under the ROC curve | {m["auc"]:.3f} |
| heads with a lesion that have a positive logit | {m["sensitivity_at_0"]:.0%} |
| heads without a lesion that have a negative logit | {m["specificity_at_0"]:.0%} |
| highest cell's centre voxel lies in the lesion, all lesions | {m["peak_voxel_in_lesion"]:.0%} |
| the same, lesions from 10 mm | {m["peak_voxel_in_lesion_from_10_mm"]:.0%} |
| highest cell touches the lesion, all lesions | {m["peak_cell_on_lesion"]:.0%} |

A feature cell is 8 mm wide, so the centre of no cell need lie in a lesion of 6 mm. These figures say nothing about real patients.

## Notice

{NOTICE}"""


def write_bundle(folder: Path, network: LesionNet, measured: dict[str, float], seed: int, steps: int) -> None:
    """Write the network and its description as a MONAI bundle."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in (("inference", INFERENCE), ("metadata", metadata(measured))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    (folder / "docs" / "README.md").write_text(readme(measured, seed, steps), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the MONAI bundle to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--heads", type=int, default=60, help="held-out heads to measure on")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of seconds on tiny heads; the model knows nothing"
    )
    options = parser.parse_args(arguments)

    steps, heads, shape = (2, 4, (48, 56, 48)) if options.quick else (options.steps, options.heads, SHAPE)
    anatomy = load_anatomy(resolution=4 if options.quick else 2)
    network = train(anatomy, options.seed, steps, shape)
    centre_logit(network, score_heads(network, anatomy, options.seed + 1_000_001, heads // 2, shape))
    rows = score_heads(network, anatomy, options.seed + 2_000_003, heads, shape)
    measured = measure(rows)
    for name, value in measured.items():
        print(f"{name}: {value:.3f}")
    write_bundle(options.out, network, measured, options.seed, steps)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
