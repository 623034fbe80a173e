"""What each operation of a network does to the places of its tensors: those that mix entries, as averages and matrix products do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medcam.engine.ghosts import At, Call, Rule, at_of, place_of
from medcam.engine.places import STILL, Dim, Place, appended, averaged, combined, spread, within_cells


def _join(call: Call) -> Any:
    parts, at = list(call.args[0]), call.named("dim", 0)
    shapes = [list(part.shape) for part in parts]
    places = [place_of(part) for part in parts]
    if call.name == "stack":
        at %= len(shapes[0]) + 1
        shapes = [[*shape[:at], 1, *shape[at:]] for shape in shapes]
        places = [p and p._replace(dims=(*p.dims[:at], STILL, *p.dims[at:])) for p in places]
    at %= len(shapes[0])
    counts = [shape[at] for shape in shapes]
    made = call.give([*shapes[0][:at], sum(counts), *shapes[0][at + 1 :]], _joined(places, counts, at))
    place = place_of(made)
    if place is not None and place.dims[at].lead:
        # What the class token knows it brought along; the others' cells are not its own.
        own = [
            hasattr(part, "_medcam_at") and bool(p and p.dims[at].runs) for part, p in zip(parts, places, strict=True)
        ]
        made_of, lead = 0, 0
        for part, has in zip(parts, own, strict=True):
            at_part = at_of(part) if hasattr(part, "_medcam_at") else At(None)
            made_of |= at_part.made_of if has else 0
            lead |= at_part.lead if has else at_part.made_of
        made._medcam_at = at_of(made)._replace(made_of=made_of, lead=lead)  # type: ignore[attr-defined]
    return made


def _joined(places: list[Place | None], counts: list[int], at: int) -> Place | None:
    known = [(n, place) for n, place in enumerate(places) if place is not None]
    if not known:
        return None
    moving = [(n, place) for n, place in known if place.dims[at].runs]
    if any(within_cells(place, at) for _, place in moving):
        known = [(n, averaged(place, at)) for n, place in known]  # pieces of a cell, held as channels
        moving = []
    if not moving:
        return _mixture(known, counts)
    if len(moving) == 1:
        n, place = moving[0]
        dim = place.dims[at]
        longer = Dim(dim.runs, sum(counts[:n]) + dim.lead, sum(counts[n + 1 :]) + dim.trail)
        return place._replace(dims=(*place.dims[:at], longer, *place.dims[at + 1 :]))
    if len(moving) < len(places):
        return None
    whole: Place | None = moving[0][1]
    for n, place in moving[1:]:
        whole = appended(whole, place, at, (sum(counts[:n]), counts[n])) if whole is not None else None
    return whole


def _mixture(known: list[tuple[int, Place]], counts: list[int]) -> Place | None:
    n, mixed = known[0]
    weight = counts[n]
    for n, place in known[1:]:
        weight += counts[n]
        if place is not mixed:
            found = combined(mixed, place, 1 - counts[n] / max(weight, 1))
            if found is None:
                return None
            mixed = found
    return mixed


def _reduce(call: Call) -> Any:
    source, place = call.args[0], place_of(call.args[0])
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return NotImplemented  # the greater of two tensors
    dims = call.named("dim", call.named("dims"))
    kept = bool(call.named("keepdim", False))
    every = range(source.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {at % source.ndim for at in every} if source.ndim else set()
    for at in gone:
        place = averaged(place, at) if place is not None else None
    shape = [1 if at in gone else n for at, n in enumerate(source.shape)]
    if not kept:
        place = place and place._replace(dims=tuple(dim for at, dim in enumerate(place.dims) if at not in gone))
        shape = [n for at, n in enumerate(shape) if at not in gone]
    name = call.name
    dtype = torch.int64 if name in ("argmax", "argmin") else None
    return call.with_others(
        call.give(shape, place, dtype=dtype), torch.int64 if name in ("max", "min", "median") else source.dtype
    )


def _embedding(call: Call) -> Any:
    """A row of a table for each entry, which is where the entry was."""
    table, entries = call.args[:2]
    place = place_of(entries)
    place = place._replace(dims=(*place.dims, STILL)) if place is not None else None
    return call.give([*entries.shape, table.shape[1]], place, dtype=table.dtype)


def _sequences(call: Call) -> Any:
    """Sequences put side by side; longer ones would leave the others' ends empty."""
    parts = call.args[0]
    first, place = parts[0], place_of(parts[0])
    same = all(part.shape == first.shape and place_of(part) == place for part in parts)
    batch_first, shape = call.named("batch_first", False), list(first.shape)
    if not same or not shape:
        return NotImplemented
    at = 0 if batch_first else 1
    place = place._replace(dims=(*place.dims[:at], STILL, *place.dims[at:])) if place is not None else None
    return call.give([*shape[:at], len(parts), *shape[at:]], place)


def _linear(call: Call) -> Any:
    source, weight = call.args[:2]
    if not hasattr(source, "_medcam_at"):
        return NotImplemented
    place = place_of(source)
    place = averaged(place, source.ndim - 1)._replace(gate=False) if place is not None else None
    return call.give([*source.shape[:-1], *weight.shape[:-1]], place)


def _product(call: Call) -> Any:
    """A matrix product. Attention's rows are queries, each where its token is; a weight's columns are where the other factor's are."""
    added = call.name in ("addmm", "baddbmm")
    one, two = call.args[1:3] if added else call.args[:2]
    if one.ndim < 2 or two.ndim < 2:
        return NotImplemented
    ndim = max(one.ndim, two.ndim)
    batch = [max(a, b) for a, b in zip(_front(one, ndim), _front(two, ndim), strict=True)]
    shape = [*batch, one.shape[-2], two.shape[-1]]
    a, b = ((spread(p, ndim) if p is not None else None) for p in (place_of(one), place_of(two)))
    rows, columns = a is not None and bool(a.dims[-2].runs), b is not None and bool(b.dims[-1].runs)
    if a is not None and (rows or not columns):
        chosen = averaged(a, ndim - 1)
    elif b is not None:
        b = averaged(b, ndim - 2)
        chosen = b._replace(dims=(*b.dims[:-2], STILL, b.dims[-1]))
    else:
        return call.give(shape, None)
    other = b if chosen.dims[-2].runs or a is chosen else a
    if other is not None:
        front = (own if own.runs else its for own, its in zip(chosen.dims[:-2], other.dims[:-2], strict=True))
        chosen = chosen._replace(dims=(*front, *chosen.dims[-2:]))
    return _attended(call, call.give(shape, chosen._replace(gate=False)), two)


def _front(tensor: Tensor, ndim: int) -> list[int]:
    return [1] * (ndim - tensor.ndim) + list(tensor.shape[:-2])


def _attended(call: Call, made: Tensor, values: Tensor) -> Tensor:
    """Class tokens have now seen the values' cells."""
    place = place_of(made)
    if place is not None and len(place.dims) > 1 and place.dims[-2].lead and hasattr(values, "_medcam_at"):
        at = at_of(made)
        made._medcam_at = at._replace(lead=at.lead | at_of(values).made_of)  # type: ignore[attr-defined]
    return made


def _attention(call: Call) -> Any:
    query, _, values = call.args[:3]
    if not hasattr(query, "_medcam_at"):
        return NotImplemented
    place = place_of(query)
    place = averaged(place, query.ndim - 1)._replace(gate=False) if place is not None else None
    made = call.give([*query.shape[:-1], values.shape[-1]], place)
    return call.with_others(_attended(call, made, values))


MIXTURES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(
        (
            "mean", "sum", "amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean", "logsumexp", "prod",
            "linalg_vector_norm", "norm", "nansum", "nanmean", "argmax", "argmin", "median",
        ),
        _reduce,
    ),
    "embedding": _embedding,
    "pad_sequence": _sequences,
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
}  # fmt: skip
