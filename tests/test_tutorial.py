"""The tutorial, word for word: its blocks are run in their order, each in a new process, and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run_page import Block, agrees, blocks_of, furnished, keep_picture, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnished(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[tuple[Block, str]]:
    """Each block that is run, and what it printed."""
    return [(block, run(block, folder)[0]) for block in blocks_of(PAGE.read_text()) if block.is_run]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_blocks_print_what_the_page_shows(printed: list[tuple[Block, str]]) -> None:
    shown = [(block, text) for block, text in printed if block.shown is not None]
    assert len(shown) == 9
    for block, text in shown:
        assert agrees(block.shown or "", text), f"line {block.line}: {block.code}\n{text}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_files_that_the_page_names_are_there(folder: Path, printed: list[tuple[Block, str]]) -> None:
    named = {name for name in re.findall(r"`([\w./-]+\.(?:png|html|mrb))`", PAGE.read_text()) if "/" in name}
    assert {"judged/report.html", "slicer/head_flair_gradcam.mrb"} <= named
    for name in named:
        assert (folder / name).is_file(), name
    assert (folder / "from-python" / "head_flair_hirescam.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_picture_is_the_one_that_the_commands_make(
    folder: Path, printed: list[tuple[Block, str]], tmp_path: Path
) -> None:
    keep_picture(folder / "compared.png", tmp_path / "kept.png")
    made, kept = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (tmp_path / "kept.png", ROOT / "docs" / "images" / "tutorial_compared.png")
    )
    assert made.shape == kept.shape
    # Letters differ between versions of the font renderer.
    assert np.mean(np.abs(made - kept).max(axis=-1) > 24) < 0.02


def test_what_is_printed_must_be_what_is_shown_up_to_rounding() -> None:
    shown = "score 0.930, 1,271 times\n...\nwrote '.../a.png'\nin 12 s\n"
    assert agrees(shown, "score  0.931, 1,290 times\nmore\nand more\nwrote '/some/where/a.png'\nin 12 s")
    assert not agrees(shown, "score 0.950, 1,271 times\nwrote 'x/a.png'\nin 12 s")
    assert not agrees(shown, "score 0.930, 1,271 times\nwrote 'x/b.png'\nin 12 s")
    assert not agrees(shown, "score 0.930, 1,271 times\nwrote 'x/a.png'")
    assert not agrees("one", "one\ntwo")
    assert not agrees("CR_7ddd64", "CR_7ddd65")


def test_blocks_are_found_with_what_they_print_and_why_they_are_not_run() -> None:
    page = "a\n\n```shell\nls\n```\n```text\nx\n```\n\n"
    page += "<!-- not run: no archive here -->\n```sh\nsend\n```\n\nwords\n\n```text\nalone\n```\n"
    listed = blocks_of(page)
    assert [(each.language, each.code, each.why_not, each.shown, each.is_run) for each in listed] == [
        ("shell", "ls\n", "", "x\n", True),
        ("sh", "send\n", "no archive here", None, False),
        ("text", "alone\n", "", None, False),
    ]
    assert [page.splitlines()[each.line - 1] for each in listed] == ["ls", "send", "alone"]
