"""`medcam merge`: the shards of a cohort put together, as if one run had made them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from medcam.commands import Result, Say
from medcam.commands.cohort import added, result_of
from medcam.commands.parsing import Commands, command

_EXAMPLES = """\
  medcam merge shards/1 shards/2 shards/3 --out results
  medcam merge shards/* --out results --report all

Shards come of `medcam cohort ... --shard I/N --out shards/I`. Files are linked where the disk can do it, else copied; the shards stay.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    merge = command(commands, "merge", "put the shards of a cohort together", examples=_EXAMPLES)
    merge.add_argument("shards", nargs="+", metavar="DIR", help="the folder of a shard")
    merge.add_argument("--out", metavar="DIR", required=True, help="where all of it goes")
    merge.add_argument(
        "--report", choices=["all", "gallery", "none"], default="gallery",
        help="overview.html, and where lesions are known report.html with pages of all cases, of best, median and worst (default); or none",
    )  # fmt: skip


def run(options: Namespace, say: Say) -> Result:
    """Join shards; what is missing makes it fail, but what is there is added up all the same."""
    from medcam.cohort.adding import Adding
    from medcam.cohort.merging import merge, missing_in_words, parts

    found = parts([Path(folder).absolute() for folder in options.shards])
    out = Path(options.out).absolute()
    say(f"joining {len(found)} of {found[0].shard[1]} shards")
    merged = merge(found, out)
    written = added(out, merged.rows, Adding.from_json(merged.adding), options.report, say)
    missing = missing_in_words(merged.missing)
    return result_of(merged.rows, written, missing=missing)
