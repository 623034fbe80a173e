"""When a series is taken for complete. DICOM does not say that the last image has come, so it is waited for, in bounds."""

from __future__ import annotations

from dataclasses import dataclass

from medcam.pacs.inbox_rows import SeriesRow


@dataclass(frozen=True)
class Pace:
    """How long to wait.

    Parameters
    ----------
    settle_s
        For so long no instance of a series has come, its peer having left in order.
    give_up_s
        So long after the last instance a series is tried though headers promise more, its peer is still there or was cut off (and may come
        again with the rest), or the reader finds a gap.
    """

    settle_s: float = 30.0
    give_up_s: float = 600.0


def complete_at(series: SeriesRow, pace: Pace, *, peer_is_here: bool, started: float) -> float:
    """Return when a series may be explained if nothing more comes, in seconds since 1970.

    Parameters
    ----------
    peer_is_here
        Whether an association of whoever sent it is open.
    started
        When the node was started: whoever was sending then comes again.
    """
    due = max(series.arrived, started) + pace.settle_s
    if series.missing or peer_is_here or not series.released:
        due = max(due, series.arrived + pace.give_up_s)
    return max(due, series.due)


def why_again(words: str, series: SeriesRow, *, pace: Pace, now: float) -> tuple[float, str] | None:
    """Return when a series that could not be read is tried again, and what is said of it until then; None if it is given up.

    A gap may be a slice that is still to come, so nothing is given up before its time. Whatever comes meanwhile is a reason to try again.
    """
    due = series.arrived + pace.give_up_s
    return None if now >= due else (due, f"waits for more images: {words}")
