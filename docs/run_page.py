"""Run the blocks of a page in its order, in an empty folder, each in a process of its own; and write what they print into the page.

    python docs/run_page.py docs/tutorial.md            # says what is printed otherwise than the page shows
    python docs/run_page.py docs/tutorial.md --write --picture compared.png docs/images/tutorial_compared.png

A block of shell or Python is run, and a block of text right after it is what it prints: a line of `...` stands for any lines, `...`
in a line for any letters, and numbers may differ by 2 % or by one of their last digit. A block after `<!-- not run: why -->` is not run.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELLS = ("shell", "sh", "bash")
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?^```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^```[ \t]*$", re.M | re.S
)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Parameters
    ----------
    line
        Where it begins in the page, from 1.
    why_not
        Why it is not run, or ''.
    shown
        What the page says that it prints, or None.
    start, end
        Where what it prints stands in the page's text.
    """

    language: str
    code: str
    line: int
    why_not: str = ""
    shown: str | None = None
    start: int = 0
    end: int = 0

    @property
    def is_run(self) -> bool:
        """Whether the block is a command or a program, and not marked."""
        return not self.why_not and self.language in (*SHELLS, "python")


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page, what is printed with the block that prints it."""
    found = list(_FENCE.finditer(text))
    blocks = []
    for at, fence in enumerate(found):
        before = found[at - 1] if at else None
        if is_output(before, fence, text):
            continue
        after = found[at + 1] if at + 1 < len(found) else None
        shown = after if after is not None and is_output(fence, after, text) else None
        blocks.append(
            Block(
                fence["language"],
                fence["code"],
                text.count("\n", 0, fence.start("code")) + 1,
                fence["why"] or "",
                shown["code"] if shown else None,
                shown.start("code") if shown else 0,
                shown.end("code") if shown else 0,
            )
        )
    return blocks


def outside_blocks(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)


def is_output(before: re.Match[str] | None, fence: re.Match[str], text: str) -> bool:
    """Tell whether a block is what the one before it prints: text with nothing between."""
    if before is None or fence["language"] != "text" or before["language"] not in (*SHELLS, "python"):
        return False
    return not text[before.end() : fence.start()].strip()


def run(block: Block, folder: Path) -> tuple[str, float]:
    """Run a block in a folder, in a new process; return what it prints on stdout, and the seconds it took.

    Raises
    ------
    RuntimeError
        If it ends with another code than 0.
    """
    command = ["bash", "-e", "-c", block.code] if block.language in SHELLS else [sys.executable, "-c", block.code]
    path = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / ".state")}
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"line {block.line} ends with {done.returncode}:\n{block.code}\n{done.stdout}{done.stderr}")
    return done.stdout, time.monotonic() - began


def furnished(folder: Path) -> Path:
    """Make a folder what a clone is to a page's commands: samples and examples in it, and `medcam` and `python` those that run this."""
    for name in ("data_samples", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".bin").mkdir()
    for name, words in (("medcam", f'"{sys.executable}" -m medcam'), ("python", f'"{sys.executable}"')):
        here = folder / ".bin" / name
        here.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        here.chmod(0o755)
    return folder


def agrees(shown: str, printed: str) -> bool:
    """Tell whether what is printed is what is shown."""
    lines, at = printed.rstrip().splitlines(), 0
    wanted = shown.rstrip().splitlines()
    for number, line in enumerate(wanted):
        if line.strip() == "...":
            rest = wanted[number + 1 :]
            return any(agrees("\n".join(rest), "\n".join(lines[start:])) for start in range(at, len(lines) + 1))
        if at >= len(lines) or not same_line(line, lines[at]):
            return False
        at += 1
    return at == len(lines)


def same_line(shown: str, printed: str) -> bool:
    """Tell whether two lines have the same words, the same spacing aside, and nearly the same numbers."""
    if "..." in shown:
        pattern = ".*".join(re.escape(part) for part in " ".join(shown.split()).split("..."))
        return re.fullmatch(pattern, " ".join(printed.split())) is not None
    if _NUMBER.sub("#", shown).split() != _NUMBER.sub("#", printed).split():
        return False
    return all(map(near, _NUMBER.findall(shown), _NUMBER.findall(printed)))


def near(shown: str, printed: str) -> bool:
    """Tell whether two numbers are the same up to 2 %, or up to one of the last digit shown."""
    decimals = len(shown.partition(".")[2])
    one, other = (float(each.replace(",", "")) for each in (shown, printed))
    return abs(one - other) <= max(0.02 * abs(one), 1.001 * 10**-decimals)


def keep_picture(made: Path, kept: Path) -> None:
    """Keep a picture in 256 colours, which take a fifth of the room."""
    from PIL import Image

    whole = Image.open(made).convert("RGB")
    whole.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(kept, optimize=True)


def main() -> int:
    """Run a page from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="put what is printed into the page")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, kept afterwards")
    parser.add_argument(
        "--picture", nargs=2, type=Path, metavar=("MADE", "KEPT"), help="keep a picture that the page makes"
    )
    options = parser.parse_args()
    text, differ, spent = options.page.read_text(), 0, 0.0
    with tempfile.TemporaryDirectory() as made:
        folder = furnished(options.folder or Path(made))
        for block in [each for each in blocks_of(text) if each.is_run]:
            printed, seconds = run(block, folder)
            spent += seconds
            print(f"{options.page}:{block.line}: {seconds:.1f} s")
            if block.shown is None or agrees(block.shown, printed):
                continue
            differ += 1
            print("\n".join(difflib.unified_diff(block.shown.splitlines(), printed.splitlines(), "shown", "printed")))
            if options.write:
                now = next(each for each in blocks_of(text) if each.code == block.code)
                text = text[: now.start] + printed.rstrip() + "\n" + text[now.end :]
        if options.picture:
            keep_picture(folder / options.picture[0], options.picture[1])
    if options.write:
        options.page.write_text(text)
    print(f"{spent:.0f} s; {differ} otherwise than shown")
    return 1 if differ and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
