"""`medcam report`: pages, figures and tables of stored heatmaps, or of what `medcam validate` found."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from medcam.commands import Result, Say
from medcam.commands.images import read_image
from medcam.commands.lesions import add_lesion, lay_lesion, read_lesion
from medcam.commands.parsing import Commands, command
from medcam.errors import InputError, UsageError

if TYPE_CHECKING:
    from medcam.report import Case
    from medcam.volume import Heatmap

RESULTS = "results.json"
_EXAMPLES = """\
  medcam report results/head_gradcam.nii.gz --source head.nii.gz --lesion lesion.nii.gz --out head.html
  medcam report results/head_gradcam.nii.gz results/head_hirescam.nii.gz --source head.nii.gz --figure compared
  medcam report judged
  medcam report judged --pages gallery --out for_the_paper

A folder is one that `medcam validate TABLE --out FOLDER` wrote; its report is report.html with figures/, paper/ and pages/ beside it. No
network is needed, and no page asks the outside for anything. Pages hold images: pass them on as you would the images. Research use only.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    report = command(
        commands,
        "report",
        "pages, figures and tables of heatmaps, or of a validated cohort",
        examples=_EXAMPLES,
        takes="image",
    )
    report.add_argument(
        "given",
        nargs="+",
        metavar="HEATMAP",
        help="heatmaps of one image that medcam wrote as NIfTI or NRRD; or the folder that `medcam validate` wrote",
    )
    report.add_argument("--source", metavar="IMAGE", help="the image that was explained; of several, the first")
    add_lesion(report, "to be outlined")
    report.add_argument(
        "--threshold", type=float, help="where colours begin, as a fraction of the maximum (default: as stored)"
    )
    report.add_argument(
        "--figure",
        metavar="PATH",
        help="also a figure for print, a row for each heatmap, as PATH.png and PATH.pdf",
    )
    report.add_argument(
        "--scale",
        choices=["own", "shared"],
        default="own",
        help="of the figure: each heatmap's own maximum (default), or the largest of all",
    )
    report.add_argument(
        "--pages",
        choices=["all", "gallery", "none"],
        default="all",
        help="of a cohort: which cases get a page of their own (default: all)",
    )
    report.add_argument(
        "--out",
        metavar="PATH",
        help="the page of heatmaps (default: beside the first, ending in .html), or the cohort's folder (default: its own)",
    )


def run(options: Namespace, say: Say) -> Result:
    """Write the page of heatmaps, or the report of a cohort."""
    given = [Path(each) for each in options.given]
    if any(path.is_dir() or path.name == RESULTS for path in given):
        return _cohort(options, given, say)
    return _case(options, given, say)


def _case(options: Namespace, paths: list[Path], say: Say) -> Result:
    from medcam.formats.stored import label_of, read_heatmap, sidecar_of, stored_threshold
    from medcam.report import Case, write_case_page

    if not options.source:
        raise UsageError("--source is missing: name the image that was explained, for a heatmap does not hold it")
    threshold = options.threshold
    if threshold is None:
        threshold = stored_threshold(sidecar_of(paths[0]), paths[0])
    if not 0 < threshold < 1:
        raise UsageError(f"--threshold is a fraction of the maximum, above 0 and below 1, not {threshold:g}")
    out = paths[0].with_name(f"{label_of(paths[0])}.html") if options.out is None else Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out of a page ends in .html, unlike {out.name}")
    say("reading the image")
    image = shown = read_image(options, options.source)
    heatmaps: list[Heatmap] = []
    for n, path in enumerate(paths, 1):
        say(f"reading heatmap {n} of {len(paths)}")
        heatmap, on = read_heatmap(path, image)
        if heatmaps and not heatmap.grid.is_close(heatmaps[0].grid):
            raise UsageError(
                f"{path.name} lies on another grid than {paths[0].name}: they explain different slices; give each a page"
            )
        heatmaps.append(heatmap)
        shown = on
    lesion = lay_lesion(options, heatmaps[0], read_lesion(options, image))
    say(f"writing {out.name}")
    case = Case(shown, tuple(heatmaps), threshold, lesion)
    write_case_page(case, out)
    files = (out, *_figure(case, options))
    values = {"files": [str(file) for file in files], "heatmaps": len(heatmaps), "threshold": threshold}
    return Result(values, [f"wrote   {file}" for file in files])


def _figure(case: Case, options: Namespace) -> tuple[Path, ...]:
    if not options.figure:
        return ()
    from medcam.report.montages import comparison
    from medcam.report.page import names_of
    from medcam.report.sheet import save_figure

    names = names_of(case.heatmaps)
    maxima = [each.maximum for each in case.heatmaps if each.maximum > 0]
    figure = comparison(
        dict(zip(names, case.heatmaps, strict=True)),
        case.volume,
        lesion=case.lesion,
        title=case.heatmaps[0].target,
        threshold=case.threshold,
        maximum=max(maxima) if options.scale == "shared" and maxima else None,
    )
    path = Path(options.figure)
    return save_figure(figure, path.parent, path.name.removesuffix(".png").removesuffix(".pdf"))


def _cohort(options: Namespace, paths: list[Path], say: Say) -> Result:
    from medcam.cohort.stored import read_cohort
    from medcam.report.cohort_report import write_report

    if len(paths) > 1:
        raise UsageError("give the folder of one cohort, and nothing beside it")
    if options.source or options.lesion or options.figure or options.threshold is not None:
        raise UsageError("--source, --lesion, --figure and --threshold are for single heatmaps; a cohort knows its own")
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    if not (folder / RESULTS).is_file():
        raise InputError(
            f"{folder} holds no {RESULTS}: give the folder that `medcam validate TABLE --out FOLDER` wrote"
        )
    out = folder if options.out is None else Path(options.out)
    if out.suffix.lower() in (".html", ".htm"):
        raise UsageError(f"--out of a cohort is a folder, unlike {out.name}: its report has several files")
    say("reading the results")
    cohort = read_cohort(folder / RESULTS)
    written = write_report(cohort, out, pages=options.pages, say=say)
    verdict = cohort.verdict
    lines = [f"verdict {verdict.words if verdict else 'none: all cases failed'}"]
    lines += [f"note    {note}" for note in written.notes]
    shown = [path for path in written.files if path.parent.name != "pages"]
    lines += [f"wrote   {path}" for path in shown]
    count = len(written.files) - len(shown)
    lines += [f"wrote   {count} pages of cases in {out / 'pages'}"] if count else []
    values = {
        "verdict": verdict.kind if verdict else None,
        "files": [str(path) for path in written.files],
        "notes": list(written.notes),
    }
    return Result(values, lines)
