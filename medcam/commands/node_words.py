"""How a node stands, in words and as values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from medcam.commands import Result

if TYPE_CHECKING:
    from medcam.pacs.node_status import Status

_STATES = ("received", "complete", "explaining", "explained", "sent", "passed", "failed")
_SHOWN = 20


def told(status: Status) -> Result:
    """Return how a node stands; all is well if it is at work and nothing has failed."""
    return Result(_values(status), list(_lines(status)), ok=status.running and not status.failed)


def _values(status: Status) -> dict[str, Any]:
    return {
        "folder": str(status.folder), "running": status.running, "aet": status.aet, "port": status.port, "pid": status.pid,
        "started": _moment(status.started), "alive": _moment(status.beat), "last_change": _moment(status.last_change),
        "series": {state: status.counts.get(state, 0) for state in _STATES}, "oldest_under_way": _moment(status.oldest),
        "failures": [
            {"series_instance_uid": one.uid, "modality": one.modality, "images": one.here, "attempts": one.tries, "words": one.words,
             "note": one.note, "refusals": list(refusals), "since": _moment(one.changed)}
            for one, refusals in status.failed
        ],
        "destinations": [{"address": each.address, **each.counts, "words": each.words} for each in status.destinations],
        "images": status.instances, "image_bytes": status.instance_bytes, "disk_bytes": status.disk_bytes,
        "free_bytes": status.free_bytes,
    }  # fmt: skip


def _lines(status: Status) -> Iterator[str]:
    who = f"{status.aet} at port {status.port}" if status.aet else "a node"
    alive = f", alive {_moment(status.beat)}" if status.beat else ""
    yield f"node    {who} {'is running' if status.running else 'is not running'} (process {status.pid}{alive})"
    counts = ", ".join(f"{status.counts[state]} {state}" for state in _STATES if status.counts.get(state))
    yield f"series  {counts or 'none yet'}{f'; last change {_moment(status.last_change)}' if status.last_change else ''}"
    if status.under_way:
        yield f"waits   {status.under_way} under way, the oldest since {_moment(status.oldest)}"
    for each in status.destinations:
        words = ", ".join(f"{number} {state}" for state, number in sorted(each.counts.items()))
        yield f"to      {each.address}: {words}{f' ({each.words})' if each.words else ''}"
    for one, refusals in status.failed[:_SHOWN]:
        reasons = "; ".join((one.words, *refusals, *([one.note] if one.note else [])))
        yield f"failed  series ...{one.uid[-12:]} ({one.here} {one.modality} images): {reasons}"
    if len(status.failed) > _SHOWN:
        yield f"        and {len(status.failed) - _SHOWN} more; --json lists all"
    sizes = f"{_size(status.disk_bytes)} in all, {_size(status.free_bytes)} free"
    yield f"disk    {status.instances} images of {_size(status.instance_bytes)}; {sizes}"


def _moment(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds") if seconds else None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
