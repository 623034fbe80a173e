"""What the documentation says is what the program does: its blocks run, its tables are complete, and the site builds without a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from compare_methods import METHODS, compare

import medcam
from engine.toy_networks import Classifier, image
from medcam.cli import COMMANDS
from medcam.engine import EXPLAINERS
from medcam.engine.fusion import FUSIONS
from medcam.formats import WRITERS
from run_page import SHELLS, Block, agrees, blocks_of, furnished, outside_blocks, run

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "data_samples" / "README.md", *(ROOT / "docs").rglob("*.md")])
PUBLIC = {
    "arxiv.org",
    "doi.org",
    "github.com",
    "ohif.org",
    "pacs.example",
    "pypi.org",
    "www.dask.org",
    "www.orthanc-server.com",
}
# A bundle that segments a spleen in windows.
SPLEEN = {
    "network_def": {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "sw_batch_size": 1, "overlap": 0.25},
}  # fmt: skip
SPLEEN_SAYS = {
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": [96, 96, 96]}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    }
}
# Pages that are run as they stand, and pages that speak of a reader's own files: what lays these down.
WHOLE = {
    "what-heatmaps-tell.md": "",
    "how-to-validate.md": """
        ln -s data_samples/models/demo_mri bundle_folder
        cp data_samples/mri/head_flair.nii.gz data_samples/mri/head_lesion.nii.gz .
        printf 'case,patient,image,mask\\na,1,head_flair.nii.gz,head_lesion.nii.gz\\n' > cases.csv
        medcam explain head_flair.nii.gz --model bundle_folder --out results --quiet""",
    "how-to-report.md": """
        ln -s data_samples/models/demo_mri bundle_folder
        cp data_samples/mri/head_flair.nii.gz head.nii.gz
        cp data_samples/mri/head_lesion.nii.gz lesion.nii.gz
        printf 'case,patient,image,mask\\na,1,head.nii.gz,lesion.nii.gz\\n' > cases.csv
        medcam explain head.nii.gz --model demo-mri --out results --quiet
        medcam explain head.nii.gz --model demo-mri --method hires-cam --out results --quiet""",
    "how-to-compare.md": """
        ln -s data_samples/models/demo_cxr bundle_folder
        python -m zipfile -c one.zip data_samples/models/demo_cxr/*
        cp one.zip two.zip
        cp data_samples/cxr/film.nii.gz data_samples/cxr/film_nodule.nii.gz .
        printf 'case,patient,image,mask,split\\na,1,film.nii.gz,film_nodule.nii.gz,development\\n' > cases.csv
        printf 'b,2,film.nii.gz,film_nodule.nii.gz,test\\n' >> cases.csv""",
    "large-volumes.md": f"""
        printf '%s' '{json.dumps(SPLEEN)}' > inference.json
        printf 'from monai.networks.nets import UNet\\n' > net.py
        printf 'def make():\\n    return UNet(3, 1, 2, (4, 8), (2,))\\n' >> net.py
        python -c "import nibabel, numpy, torch, net
        torch.manual_seed(0)
        torch.save(net.make().state_dict(), 'weights.pt')
        voxels = numpy.random.default_rng(0).normal(size=(100, 104, 110)).astype('float32')
        nibabel.save(nibabel.Nifti1Image(voxels, numpy.diag([1.5, 1.25, 2, 1])), 'ct.nii.gz')"
        mkdir -p bundle_folder/configs bundle_folder/models
        cp inference.json bundle_folder/configs
        cp weights.pt bundle_folder/models/model.pt
        printf '%s' '{json.dumps(SPLEEN_SAYS)}' > bundle_folder/configs/metadata.json""",
    "how-to-atlas.md": """
        cp data_samples/mri/head_flair.nii.gz data_samples/mri/head_lesion.nii.gz .
        cp head_flair.nii.gz mni_t1.nii.gz
        printf 'case,patient,image,mask\\na,1,head_flair.nii.gz,head_lesion.nii.gz\\n' > cases.csv
        medcam validate cases.csv --model demo-mri --report none --out medcam-validated --quiet
        medcam explain head_flair.nii.gz --model demo-mri --out results --quiet
        printf 'case,patient,heatmap\\na,1,results/head_flair_gradcam.nii.gz\\n' > heatmaps.csv""",
}
# Whose Python is run with the shell blocks around it, or by tests/test_packaging.py, and not by itself.
IN_ORDER = {"README.md", "tutorial.md", "what-heatmaps-tell.md"}
COMMAND = re.compile(
    r"\s*(?:\$ )?(?:medcam|pip|python3?|pytest|npm|Slicer|sbatch|snakemake|nextflow|dask|export|curl|docker|nnUNet\w*)\s+\S"
)


def examples(page: Path) -> list[Block]:
    return [block for block in blocks_of(page.read_text()) if block.language == "python" and block.is_run]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if examples(page) and page.name not in IN_ORDER], ids=lambda page: page.name
)
def test_python_in_the_documentation_runs_and_prints_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data_samples").symlink_to(ROOT / "data_samples")
    monkeypatch.chdir(tmp_path)
    # An example may add a method; the table is then as it was.
    monkeypatch.setitem(EXPLAINERS, "positive-cam", EXPLAINERS["grad-cam"])
    shared: dict[str, object] = {"medcam": medcam, "network": Classifier(2).eval(), "images": image(2)}
    for block in examples(page):
        capsys.readouterr()
        exec(compile(block.code, page.name, "exec"), shared)
        printed = capsys.readouterr().out
        assert block.shown is None or agrees(block.shown, printed), f"line {block.line}: {printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text()
    blocks = blocks_of(text)
    hidden = [
        f"line {block.line}: {line}"
        for block in blocks
        if block.language not in (*SHELLS, "python") and not block.why_not
        for line in block.code.splitlines()
        if COMMAND.match(line)
    ]
    hidden += [line for line in outside_blocks(text).splitlines() if line.startswith("    ") and COMMAND.match(line)]
    assert not hidden, f"{page.name} shows commands in blocks that are no `shell`: {hidden}"
    # `py` is Python that only the page's own test can run.
    if any(not block.why_not and block.language in (*SHELLS, "py") for block in blocks):
        assert run_by(page), f"no test runs the commands of {page.name}"


def run_by(page: Path) -> str:
    """Return which test runs the blocks of a page that are not run here, or ''."""
    if page.name in WHOLE:
        return Path(__file__).name
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    return next((path.name for path in tests if f'"{page.name}"' in path.read_text()), "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", WHOLE)
def test_the_blocks_of_a_page_run_in_their_order_and_print_what_it_shows(page: str, tmp_path: Path) -> None:
    folder = furnished(tmp_path)
    before = "\n".join(line.strip() for line in WHOLE[page].splitlines())
    run(Block("shell", before, 0), folder)
    in_order = page in IN_ORDER
    for block in blocks_of((ROOT / "docs" / page).read_text()):
        if not block.is_run or (block.language == "python" and not in_order):
            continue
        printed, _ = run(block, folder)
        assert block.shown is None or agrees(block.shown, printed), f"line {block.line}: {block.code}\n{printed}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_builds_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "site")],
        env=os.environ | offline | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    command_line = (site / "reference" / "command-line.html").read_text()
    assert all(f'id="medcam-{name}"' in command_line for name in COMMANDS)
    options = (site / "reference" / "options.html").read_text()
    assert all(f">{name}(" in options or f">{name}<" in options for name in [*EXPLAINERS, *WRITERS])
    judge = (site / "reference" / "validate.html").read_text()
    assert 'id="medcam.validate.measuring.measure"' in judge
    # Nothing that a reader's browser would fetch from elsewhere.
    pages = [path for path in site.rglob("*.html") if "_modules" not in path.parts]
    fetched = [
        (path.name, each)
        for path in pages
        for each in re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]+)"', path.read_text())
    ]
    assert not fetched


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medcam", "MONAI"])
def test_the_page_of_peers_says_what_they_do(name: str) -> None:
    from make_peers_table import QUESTIONS, TOOLS, answer

    page = (ROOT / "docs" / "peers.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", page, re.M)]
    heads = next(row for row in rows if row[1].startswith("medcam 0"))
    column = next(n for n, head in enumerate(heads) if head.startswith(name))
    told = {row[0]: row[column] for row in rows if len(row) == len(heads) and row[0] in QUESTIONS}
    assert set(told) == set(QUESTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert told == {words: answer(question, TOOLS[name]) for words, question in QUESTIONS.items()}


def test_a_page_that_the_index_does_not_name_is_missed() -> None:
    named = set(re.findall(r"\]\(([^)#:]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert named == there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)\s#:]*)#([\w-]+)\)", page.read_text()):
        there = page if not target else (page.parent / target)
        assert heading in {slug(each) for each in re.findall(r"^#+ (.+)$", there.read_text(), re.M)}, (target, heading)


def slug(heading: str) -> str:
    """Return a heading's anchor, as both the site and the forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_path_or_a_host_of_one_machine(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(r"(?<![\w.])/(?:home|tmp|root|work|Users|opt|mnt|srv)/[\w./-]+", text)
    assert {path for path in paths if not path.startswith("/opt/medcam/")} == set()
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= PUBLIC


def test_the_comparison_of_methods_draws_its_picture(tmp_path: Path) -> None:
    shares = compare(tmp_path / "methods.png")
    assert list(shares) == METHODS
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["grad-cam"] > 0.5
    assert (tmp_path / "methods.png").stat().st_size > 50_000


def test_every_method_and_fusion_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    named = set(re.findall(r"^\| (`[^|]*`) \|", page, re.M))
    assert {name for cell in named for name in re.findall(r"`([^`]+)`", cell)} == set(EXPLAINERS)
    assert all(name in page for name in FUSIONS)
    assert f"any of {len(EXPLAINERS)} methods" in (ROOT / "README.md").read_text()
