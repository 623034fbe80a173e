"""Run medcam on every network of `monai.networks.nets` and write down what came of it, in docs/networks.md.

    python docs/make_networks_table.py            # all; a few minutes
    python docs/make_networks_table.py UNet ViT   # these, printed and not written

The networks are those of tests/engine/monai_zoo.py, what is tried is tests/engine/zoo_contract.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE.parent / "tests")]

import monai  # noqa: E402

from engine.monai_zoo import LEFT_OUT, ZOO, Network  # noqa: E402
from engine.zoo_contract import Outcome, try_out  # noqa: E402

# Float32 sums in another order for a batch than for one image; more than this is another image's influence.
TOLERANCE = 1e-4

_HEAD = """# Networks

Every network of `monai.networks.nets` (MONAI {version}) that ends in classes, voxels or boxes, tried by
`docs/make_networks_table.py` with random weights, as small as its class allows, in 2D and in 3D. No network needed a line
of code to be explained; where one does not take a plain batch of images, the last column says what stood before it.

- **Grad-CAM**: yes, or why not, in medcam's own words.
- **Default layer**: what `medcam.relevance(network, images)` looks at, and how many cells it has.
- **A cell**: how many voxels of the input lie from one cell's centre to the next, and where the first one's is.
  *Assumed*: it could not be measured, and an even spread is taken.
- **Untouched**: hooks, modes, weights, buffers and gradients are what they were.
- **Batch**: two images at once give what each gives alone, up to rounding.

"""


def main(wanted: list[str]) -> None:
    rows = [row(entry, dims) for entry in ZOO if not wanted or entry.name in wanted for dims in (2, 3)]
    table = "\n".join(
        [
            "| Network | Ends in | Axes | Grad-CAM | Default layer | A cell | Untouched | Batch | |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )
    if wanted:
        print(table)
        return
    left = "\n".join(f"| {name} | {why} |" for name, why in sorted(LEFT_OUT.items()))
    text = (
        f"{_HEAD.format(version=monai.__version__)}{table}\n\n## Left out\n\n| Class | Why |\n| --- | --- |\n{left}\n"
    )
    (_HERE / "networks.md").write_text(text, encoding="utf-8")


def row(entry: Network, dims: int) -> str:
    note = "; ".join(filter(None, [entry.adapted, f"needs {entry.needs}" if entry.needs else ""]))
    if dims not in entry.sizes:
        cells = ["", "", "", "", "", entry.absent]
    elif not entry.available:
        cells = [f"not tried: needs {entry.needs}", "", "", "", "", note]
    else:
        outcome = try_out(entry, dims)
        print(f"{entry.title} {dims}D: {outcome.failure or outcome.layer}", file=sys.stderr, flush=True)
        cells = [*_findings(outcome, entry.one_by_one), note]
    return f"| {' | '.join([entry.title, entry.ends_in, f'{dims}D', *cells])} |"


def _findings(found: Outcome, one_by_one: bool) -> list[str]:
    untouched = "yes" if not found.touched else f"no: {', '.join(found.touched[:3])}"
    if found.failure:
        return [found.failure.replace("|", "\\|").replace("\n", " "), "", "", untouched, ""]
    cell = f"{_numbers(found.stride)}, from {_numbers(found.offset)}" if found.measured else "assumed"
    together = "yes" if found.apart < TOLERANCE else f"no: {found.apart:.0e} apart"
    together = "takes one image" if one_by_one else together
    works = "blank" if found.blank else "yes"
    return [works, f"`{found.layer}`, {_numbers(found.cells, ' x ')}", cell, untouched, together]


def _numbers(values: tuple[float, ...], between: str = ", ") -> str:
    text = [f"{value:g}" for value in values]
    return text[0] if len(set(text)) == 1 and between == ", " else between.join(text)


if __name__ == "__main__":
    main(sys.argv[1:])
