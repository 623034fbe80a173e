"""Maps of classes that each window scores for itself: one sweep gives them along with the prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine import doubts
from medcam.engine.class_words import Choice, Pick
from medcam.engine.classes import apart, chosen, somewhere
from medcam.engine.footprint import Footprint
from medcam.engine.layers import Layer
from medcam.engine.outputs import find_place
from medcam.engine.settled import Rows, Settled, Unsettled
from medcam.engine.stitching import CellStitch, Shares, cell_grid
from medcam.engine.study import Clean, Remark, Study
from medcam.engine.sweep import Draft, Setting, Wish, as_cells, clean_pass, facts_of, study_of
from medcam.engine.window_pass import Job, Kept, Spot
from medcam.errors import UsageError

# Of an answer: which target, which method, which layer.
Place = tuple[int, int, int]


@final
@dataclass(frozen=True, eq=False)
class Question:
    """A target that each window can be asked for itself.

    Parameters
    ----------
    target
        With no class left open.
    choice
        What classes it compares, one of each kind for all volumes or one for each; None for a function of the user's.
    left_open
        Whether the user had left a class to be predicted.
    """

    target: Unsettled
    choice: Choice | None
    left_open: bool = False

    def about(self, spots: Sequence[Spot]) -> Unsettled:
        """Return the question to some windows, one sample each."""
        if self.choice is None:
            return self.target
        plus, minus = (
            tuple(_of_spots(pick, spots) for pick in picks) for picks in (self.choice.plus, self.choice.minus)
        )
        return chosen(replace(self.choice, plus=plus, minus=minus))

    def classes_of(self, volume: int) -> list[int]:
        """Return the classes in whose predicted region a volume is scored."""
        picks = () if self.choice is None else self.choice.plus or self.choice.minus
        return [pick if isinstance(pick, int) else pick[volume] for pick in picks if pick is not None]


def filled(target: Unsettled, predicted: tuple[int, ...]) -> Question:
    """Return a target of classes with those left open set to what is predicted for each volume."""
    choice = apart(target)
    if choice is None:
        return Question(target, None)
    plus, minus = (
        tuple(predicted if pick is None else pick for pick in picks) for picks in (choice.plus, choice.minus)
    )
    known = replace(choice, plus=plus, minus=minus)
    return Question(chosen(known).read(target.reading), known, None in (*choice.plus, *choice.minus))


def _of_spots(pick: Pick, spots: Sequence[Spot]) -> Pick:
    return tuple(pick[spot.volume] for spot in spots) if isinstance(pick, tuple) else pick


@final
class Sum:
    """What all windows gave for one target, method and layer."""

    def __init__(self, job: Job, wish: Wish, layer: Layer | None) -> None:
        self._job = job
        self.wish, self.layer = wish, layer
        self.where: Footprint | None = None
        self.calls, self.dtype = 1, torch.float32
        self.remarks: dict[str, tuple[Tensor, Tensor]] = {}
        self.stitch: CellStitch | None = None
        # The size of gradients and of their means, from which doubts are read.
        self.slopes = torch.zeros((job.volumes, 2), device=job.tiling.importance.device)

    def add(self, study: Study, spots: Sequence[Spot], rows: Sequence[int]) -> None:
        """Ask the method about a batch of windows, and keep its answer for some of them."""
        needs = self.wish.explainer.needs
        with torch.autocast(study.inputs.device.type, enabled=False):
            cells = as_cells(self.wish.explainer.explain(study), study.footprint)
        sizes = None
        if "gradient" in needs:
            sizes = torch.stack(doubts.gradient_sizes(study.gradient), 1).to(self.slopes)
        if self.stitch is None:
            self.where, self.dtype = study.footprint, cells.values.dtype
            if self.layer is not None:
                seen = study.clean.captured.layers[self.layer.name]
                self.calls, self.dtype = seen.calls, seen.native.dtype
            self.stitch = CellStitch(
                cell_grid(self._job.placed, cells), (self._job.volumes,), cells.values.dtype, holes=not needs
            )
        for row in rows:
            spot = spots[row]
            self.stitch.add(spot.volume, spot.corner, cells.values[row].detach())
            if sizes is not None:
                self.slopes[spot.volume] += sizes[row]
            for remark in study.remarks:
                self._remember(remark, row, spot.volume)

    def _remember(self, remark: Remark, row: int, volume: int) -> None:
        none = torch.zeros(self._job.volumes, device=remark.flags.device)
        flags, values = self.remarks.setdefault(remark.sentence, (none, torch.full_like(none, -torch.inf)))
        flag, value = remark.flags[row], remark.values[row]
        flags[volume] = torch.maximum(flags[volume], flag)
        # Of several windows' values the largest stands for the volume.
        values[volume] = torch.where(flag > 0, torch.maximum(values[volume], value), values[volume])

    def draft(self, scored: Scored) -> Draft:
        """Return the blended answer, with all that is to be said of it still on the device."""
        if self.stitch is None:
            raise UsageError(f"{self.wish.name} had no window to look at")
        values = self.stitch.blended()
        # Only a method that needs nothing may leave places out; elsewhere what is not a number is a failure.
        seen = values if self.wish.explainer.needs else values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        known = "gradient" in self.wish.explainer.needs
        sizes = self.slopes.to(values).unbind(1) if known else (None, None)
        measures = doubts.measure(seen, *sizes)
        cells = self.stitch.grid.without_padding(values)
        remarks = [Remark(sentence, *found) for sentence, found in self.remarks.items()]
        target, score = scored.settled(), scored.score.to(values.device)
        chance = None if scored.probability is None else scored.probability.to(values.device)
        return Draft(
            cells.values, cells.stride, cells.offset, self.layer, self.where, self.wish, target, score, chance,
            facts_of(measures, target, chance, remarks), remarks, self.dtype, self.calls,
        )  # fmt: skip


@final
class Scored:
    """What a target's score was in all windows."""

    def __init__(self, job: Job, question: Question) -> None:
        self._job, self.question = job, question
        self.score = torch.zeros(job.volumes, device=job.tiling.importance.device)
        self.probability: Tensor | None = None
        self.kind, self.of_voxels = "", False
        # In how many windows the region is predicted.
        self.hits = [0] * job.volumes
        self.common: tuple[str, ...] = ()
        # For each volume what a window says of itself, its facts and its row: the first window that is explained.
        self._seen: dict[int, tuple[Callable[[Rows], tuple[tuple[str, ...], ...]], Rows, int]] = {}

    def tally(
        self,
        settled: Settled,
        logits: Tensor,
        facts: list[list[int]],
        spots: Sequence[Spot],
        rows: Sequence[int],
        shares: Shares,
    ) -> None:
        """Add what some windows make of the score: their share of each voxel's part, or of a classifier's mean."""
        windows, self.kind, self.of_voxels = len(self._job.tiling.corners), settled.score, settled.each is not None
        with torch.no_grad():
            values = settled(logits) if settled.each is None else settled.each(logits)
            chances = None if settled.chance is None else settled.chance(logits) / windows
        self.score = self.score.to(values)
        if chances is not None:
            self.probability = torch.zeros_like(self.score) if self.probability is None else self.probability
        for row in rows:
            volume = spots[row].volume
            if self.of_voxels:
                share = self._job.inside(shares.of(spots[row].corner).unsqueeze(0))[0]
                self.score[volume] += (values[row] * share).sum()
            else:
                self.score[volume] += values[row] / windows
            if chances is not None and self.probability is not None:
                self.probability[volume] += chances[row]
            self._seen.setdefault(volume, (settled.told, facts, row))

    def settled(self) -> Settled:
        """Return the target as the whole volume answers it, for its words and classes."""
        choice, volumes = self.question.choice, self._job.volumes
        single = choice is not None and len(choice.plus) == 1
        classes = [self.question.classes_of(volume)[0] for volume in range(volumes)] if single else None

        def scored(_output: Any) -> Tensor:
            return self.score

        def told(_rows: Rows) -> tuple[tuple[str, ...], ...]:
            return tuple((*self.common, *self._told(volume)) for volume in range(volumes))

        def described(_rows: Rows, names: Sequence[str]) -> str:
            return self.question.target.describe(names)

        return Settled(
            scored, self.kind, None if classes is None else torch.tensor(classes),
            torch.zeros((volumes, 0), dtype=torch.long), told, described,
        )  # fmt: skip

    def _told(self, volume: int) -> list[str]:
        told, facts, row = self._seen[volume]
        if not self.of_voxels:
            # Whether a classifier finds its only class likely is a matter of each window.
            facts = [[lacking, 0, *rest] for lacking, _, *rest in facts] if self.question.choice is not None else facts
        notes = list(told(facts)[row])
        choice, count = self.question.choice, len(self._job.tiling.corners)
        if choice is not None and choice.asked and self.question.left_open:
            notes.append(f"The predicted class, {self.question.classes_of(volume)[0]}, is explained.")
        if count > 1:
            sides = " x ".join(map(str, self._job.tiling.roi))
            some = self.of_voxels and 0 < self.hits[volume] < count
            rest = f"; {self.hits[volume]} of them, in which the target is predicted, add to the map" if some else ""
            notes.append(f"The network saw the volume in {count} windows of {sides} voxels{rest}.")
        return notes


def by_windows(
    job: Job, questions: Sequence[Question], present: Bool[Tensor, "windows classes"] | None, kept: Kept | None
) -> dict[Place, Draft]:
    """Explain targets, each window scoring the region in which it predicts the classes itself.

    A window that predicts none of it counts as zeros and costs no backward pass. A volume in which no window does is gone through once
    more, and the score is then summed over all of it.

    Parameters
    ----------
    present
        Where each class is predicted, if that is known: other windows are then not run.
    kept
        Takes the stitched output, if given; then all windows must run.
    """
    scored = [Scored(job, question) for question in questions]
    sums: dict[Place, Sum] = {}
    shares, stitch = Shares(job.tiling), job.stitch([kept.take]) if kept else None
    visit: Sequence[int] = job.every
    if present is not None:
        visit = [
            n for n in job.every
            if any(bool(present[n, c]) for question in questions for c in question.classes_of(job.volume_of(n)))
        ]  # fmt: skip
    done = 0 if present is None else len(job.every)
    for spots, setting in job.batches(visit, done, done + len(visit)):
        logits = _batch(job, setting, spots, scored, sums, shares, again=False)
        if stitch is not None and logits.ndim > 2:
            job.add(stitch, spots, logits)
        del logits
    if stitch is not None:
        stitch.finish()
    if missing := [v for v in range(job.volumes) if any(each.hits[v] == 0 for each in scored)]:
        done += len(visit)
        visit = [n for n in job.every if job.volume_of(n) in missing]
        for spots, setting in job.batches(visit, done, done + len(visit)):
            _batch(job, setting, spots, scored, sums, shares, again=True)
    return {place: each.draft(scored[place[0]]) for place, each in sums.items()}


def _batch(
    job: Job,
    setting: Setting,
    spots: list[Spot],
    scored: list[Scored],
    sums: dict[Place, Sum],
    shares: Shares,
    *,
    again: bool,
) -> Float[Tensor, "n classes *s"]:
    """Explain one batch of windows, and return the network's scores, outside the graph.

    `again` explains the windows of volumes in which no window predicts the region: each then scores all of its voxels.
    """
    captured, tails = clean_pass(setting, job.needs)
    count = len(spots)
    logits = job.scores_in(captured.output, count)
    own, reading = job.inside(logits), job.read(count)
    for t, each in enumerate(scored):
        settled = each.question.about(spots).read(replace(reading, output=None)).settled(own)
        facts = settled.facts.tolist()
        if again:
            rows = [n for n, spot in enumerate(spots) if each.hits[spot.volume] == 0]
        else:
            rows = [n for n in range(count) if each.question.choice is None or somewhere(facts[n])]
        each.common = find_place(captured.output, reading)[1]
        each.tally(settled, own.detach(), facts, spots, rows, shares)
        more = t < len(scored) - 1 or "graph" in job.needs
        clean = Clean(captured, _on_output(job, settled, count), reading, keep_graph=more)
        for w, wish in job.wishes:
            layers = setting.layers if wish.explainer.looks_at_layer else (None,)
            for place, layer in enumerate(layers if rows else ()):
                study = study_of(setting, clean, layer, tails, [])
                sums.setdefault((t, w, place), Sum(job, wish, layer)).add(study, spots, rows)
        if not again:
            for row in rows:
                each.hits[spots[row].volume] += 1
    return logits.detach()


def _on_output(job: Job, settled: Settled, windows: int) -> Settled:
    """Return a target that was settled on the scores of windows, to be asked of the network's whole output."""

    def scored(output: Any) -> Tensor:
        return settled(job.inside(job.scores_in(output, windows)))

    return replace(settled, scored=scored, chance=None, each=None)
