"""A cohort whose truth is known, and three networks that deserve three verdicts.

60 made-up patients with two or three nodules each and 30 without, on small films. Every film with nodules also bears a bright marker in
a corner, as films from one ward do. One network was trained where the marker tells nothing, one where it tells everything, and one not
at all. `python examples/shortcut_cohort.py DIR` writes films, table and networks, and says how to have them judged.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medcam.lesion_net import LesionNet
from synthetic_films import Film, implant_nodule, synthetic_film

COLUMNS, ROWS, PIXEL_MM = 80, 96, 3.5
THORAXES = 16
FACTORY = "medcam.lesion_net:LesionNet(2, (8, 16, 16, 16))"


@dataclass
class Case:
    """A film, its nodules, and whether it bears the marker."""

    film: NDArray[np.float32]
    nodules: NDArray[np.bool_]


def thoraxes(rng: np.random.Generator, count: int = THORAXES) -> list[Film]:
    """Draw thoraxes without nodules; patients share them, mirrored and with noise of their own."""
    return [synthetic_film(rng, COLUMNS, ROWS) for _ in range(count)]


def case(rng: np.random.Generator, bodies: list[Film], *, nodules: int, marker: bool) -> Case:
    """Draw one patient's film."""
    body = bodies[rng.integers(len(bodies))]
    side = int(rng.choice([-1, 1]))
    film, lungs = body.absorption[::side].copy(), body.lungs[::side]
    mask = np.zeros(film.shape, bool)
    for _ in range(nodules):
        film, one = implant_nodule(film, lungs & ~mask, rng, float(rng.uniform(7, 12)), float(rng.uniform(0.25, 0.45)))
        mask |= one
    film = film + rng.normal(0, 0.02, film.shape).astype(np.float32)
    if marker:
        i, j = rng.integers(3, 7, 2)
        film[i : i + 8, j : j + 8] = 1.3
    return Case(film.astype(np.float32), mask)


def train(cases: list[Case], *, by_place: bool, steps: int = 120, seed: int = 0) -> nn.Module:
    """Train a small network to tell films with nodules from those without.

    Parameters
    ----------
    by_place
        Whether it is told where the nodules lie, or only that there are some.
    """
    torch.manual_seed(seed)
    network = LesionNet(2, (8, 16, 16, 16))
    films = torch.stack([torch.from_numpy(each.film)[None] for each in cases])
    masks = torch.stack([torch.from_numpy(each.nodules.astype(np.float32))[None] for each in cases])
    places, truth = nn.functional.adaptive_max_pool2d(masks, (COLUMNS // 4, ROWS // 4)), masks.amax((1, 2, 3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    chosen = np.random.default_rng(seed)
    for _ in range(steps):
        batch = torch.from_numpy(chosen.choice(len(cases), 32, replace=False))
        loss = loss_of(network(films[batch])[:, 0], truth[batch])
        if by_place:
            loss = 0.2 * loss + loss_of(
                network.location_logits(films[batch]), places[batch], pos_weight=torch.tensor(3.0)
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def right_network(rng: np.random.Generator, bodies: list[Film], count: int = 240) -> nn.Module:
    """Train by the places of nodules, where half of all films bear the marker, whether they show nodules or not."""
    return train(
        [
            case(rng, bodies, nodules=int(rng.integers(2, 4)) * (n % 2), marker=bool(rng.integers(2)))
            for n in range(count)
        ],
        by_place=True,
    )


def wrong_network(rng: np.random.Generator, bodies: list[Film], count: int = 240) -> nn.Module:
    """Train by films as a whole, where those that show nodules are those that bear the marker."""
    return train(
        [case(rng, bodies, nodules=int(rng.integers(2, 4)) * (n % 2), marker=bool(n % 2)) for n in range(count)],
        by_place=False,
        steps=60,
    )


def untrained_network(seed: int = 7) -> nn.Module:
    """Return a network that has learned nothing."""
    torch.manual_seed(seed)
    return LesionNet(2, (8, 16, 16, 16)).eval()


def write_cohort(folder: Path, rng: np.random.Generator, bodies: list[Film], *, ill: int = 60, well: int = 30) -> Path:
    """Write films, masks and the table of cases, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-PIXEL_MM, -PIXEL_MM, 1.0, 1.0])
    table = folder / "cases.csv"
    with table.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["case", "patient", "image", "mask", "truth"])
        for n in range(ill + well):
            nodules = int(rng.integers(2, 4)) if n < ill else 0
            one = case(rng, bodies, nodules=nodules, marker=n < ill)
            name = f"film_{n:03d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(one.film[:, :, None], affine), folder / name)
            mask = f"nodules_{n:03d}.nii.gz" if nodules else ""
            if mask:
                nibabel.save(nibabel.Nifti1Image(one.nodules[:, :, None].astype(np.uint8), affine), folder / mask)
            rows.writerow([f"case {n}", f"patient {n}", name, mask, int(nodules > 0)])
    return table


def main(folder: Path) -> None:
    """Write all, and say what to run."""
    rng = np.random.default_rng(0)
    bodies = thoraxes(rng)
    # No network has seen the bodies that it is judged on.
    table = write_cohort(folder, rng, thoraxes(rng))
    networks = {
        "right": right_network(rng, bodies),
        "wrong": wrong_network(rng, bodies),
        "untrained": untrained_network(),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
        print(f"medcam validate {table} --model {folder / name}.pt --factory '{FACTORY}' --out {folder / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "shortcut_cohort"))
