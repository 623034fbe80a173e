"""What the numbers of a case, or of a cohort, come to: in words, with the numbers that say so.

The questions in the order in which they are asked, since each would answer for the next. Does the network use the lesion at all? If not,
a map that lies elsewhere is right. Could this layer's cells show it? If not, no map of it can. Is the map placed better than chance, and
better than maps that know nothing?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medcam.validate.bootstrap import Interval
from medcam.validate.measures import Measure

KINDS = {
    "ignores": "the model ignores the lesion",
    "coarse": "the layer is too coarse",
    "wrong": "the map is wrong",
    "agrees": "the map agrees with the lesion",
    "untold": "cannot be told",
}

# Declared before any result was seen. docs/how-to-validate.md says them to users.
#
# Of the score, so much hangs on the lesion beyond a healthy region of its shape: where it is less, the lesion is ignored.
USED = 0.1
# What is as likely by chance as this, or likelier, shows nothing.
CHANCE = 0.05
# The average precision that the lesion itself reaches on the layer's cells: below it they cannot show where the lesion is.
FINE = 0.3
# Of that, so much is reached by a map that is as right as its cells allow.
REACHED = 0.5
# A hit under ties, from which the peak lies in the lesion rather than not.
HIT = 0.5
# Of what the best map that knows nothing leaves, a map must gain so much to be better in a single case.
GAIN = 0.1
# With fewer patients than this an interval says nothing, and the cohort cannot be told.
FEWEST = 5

_MODEL = "the network (--model), to see whether it uses the lesion"
_IMAGE = "the image, to compare with its brightness, edges and centre"


@dataclass(frozen=True)
class Verdict:
    """What the numbers come to.

    Parameters
    ----------
    kind
        A name of `KINDS`.
    because
        Sentences with the numbers that say so, the decisive one first.
    missing
        What would have to be known for more: for 'untold' to be told at all.
    """

    kind: str
    because: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The verdict in words: 'the map is wrong'."""
        return KINDS[self.kind]


def of_case(
    numbers: Mapping[str, Measure],
    baselines: Mapping[str, Mapping[str, Measure]],
    trials: Mapping[str, Measure],
    cell_mm: float = float("nan"),
) -> Verdict:
    """Return the verdict of one case.

    Parameters
    ----------
    numbers, baselines
        As `measure_heatmap` gives them, of the heatmap and of each baseline.
    trials
        Of the lesion's use: `lesion_share@FILL` (of the score, what hangs on the lesion more than on a healthy region) and
        `lesion_p@FILL`. Empty without the network.
    cell_mm
        The side of a cell of the heatmap's layer; NaN where it is not known.
    """
    if not _of(numbers, "lesions") > 0:
        return Verdict("untold", ("The case has no lesion.",))
    uses, use_words = _use(trials)
    missing = () if trials else (_MODEL,)
    if uses is False:
        return Verdict("ignores", (use_words,))
    if not _of(numbers, "max_relevance") > 0:
        blank = ("No voxel speaks for the target.", *_said(use_words))
        return Verdict("wrong", blank) if uses else Verdict("untold", blank, missing)
    lies, place_words = _place(numbers, cell_mm)
    ceiling, reached = _of(numbers, "ceiling_average_precision"), _of(numbers, "average_precision_of_ceiling")
    if ceiling < FINE and (reached >= REACHED or _of(numbers, "peak_distance") <= cell_mm):
        words = (
            f"On cells of this layer{_side(cell_mm)} the lesion itself reaches an average precision of {ceiling:.2f}."
        )
        return Verdict("coarse", (words, place_words, *_said(use_words)))
    because = (place_words, *_said(use_words))
    beaten, better_words, unasked = _beats(numbers, baselines)
    if lies and (uses or (beaten and not unasked)):
        return Verdict("agrees", (*because, better_words), missing)
    if lies:
        # Without the network a map on the lesion shows no more than what lies there as well.
        return Verdict("untold", (*because, better_words), (*missing, *unasked))
    if lies is False and uses:
        return Verdict("wrong", because)
    return Verdict("untold", because, missing)


def _use(trials: Mapping[str, Measure]) -> tuple[bool | None, str]:
    """Tell whether the network uses the lesion; None where that cannot be told, as where fills disagree."""
    fills = [name.partition("@")[2] for name in trials if name.startswith("lesion_share@")]
    known = {fill: _of(trials, f"lesion_share@{fill}") for fill in fills}
    known = {fill: share for fill, share in known.items() if share == share}
    if not known:
        return None, ""
    ps = {fill: _of(trials, f"lesion_p@{fill}") for fill in known}
    words = "; ".join(f"{_whole(share)} if {_filled(fill)} (p {ps[fill]:.2g})" for fill, share in known.items())
    words = f"Of the score this hangs on the lesion, beyond a healthy region of its shape: {words}."
    if all(share >= USED and ps[fill] <= CHANCE for fill, share in known.items()):
        return True, words
    if all(share < USED for share in known.values()):
        return False, words
    return None, words


def _place(numbers: Mapping[str, Measure], cell_mm: float) -> tuple[bool | None, str]:
    """Tell whether the map lies on the lesion; None where it lies there more than by chance, and not mainly there."""
    hit, p = _of(numbers, "hit"), _of(numbers, "average_precision_p")
    reached, precision = _of(numbers, "average_precision_of_ceiling"), _of(numbers, "average_precision")
    words = f"Average precision {precision:.2f}"
    words += f", {reached:.0%} of what the layer's cells allow" if reached == reached else ""
    chance = _of(numbers, "average_precision_uniform")
    words += f", by chance {chance:.2g}" if chance == chance else ""
    words += f" (p {p:.2g})" if p == p else ""
    away = _of(numbers, "peak_distance")
    unit = (numbers["peak_distance"].unit if "peak_distance" in numbers else "") or "mm"
    words += "; the peak lies in the lesion." if hit >= HIT else f"; the peak lies {away:.0f} {unit} from the lesion."
    if p != p:
        return None, words
    if p > CHANCE:
        return False, words
    # Peaks cannot be nearer than cells are fine.
    return (True if hit >= HIT or away <= cell_mm or reached >= REACHED else None), words


def _beats(
    numbers: Mapping[str, Measure], baselines: Mapping[str, Mapping[str, Measure]]
) -> tuple[bool, str, tuple[str, ...]]:
    """Tell whether the map is better than all that know nothing, in words, and what could not be compared with."""
    own = _of(numbers, "average_precision")
    others = {name: _of(found, "average_precision") for name, found in baselines.items()}
    others = {name: value for name, value in others.items() if value == value}
    if not others:
        return False, "It was compared with no baseline.", (_IMAGE,)
    best = max(others, key=lambda name: others[name])
    beaten = own - others[best] >= GAIN * (1 - others[best])
    words = f"{best.replace('-', ' ').capitalize()} alone reaches {others[best]:.2f}."
    return beaten, words, ()


@dataclass(frozen=True)
class Evidence:
    """What is known of a cohort, from its cases with a lesion; None where it is not.

    Parameters
    ----------
    patients
        How many have a lesion.
    share
        By fill, the mean share of the score that hangs on the lesion.
    tells_apart
        The area under the ROC curve of the network's probability for cases with a lesion against those without.
    ceiling, reached
        The mean average precision that the layer's cells allow, and the mean share of it that the heatmaps reach.
    within_a_cell
        The share of cases whose peak lies at most a cell's side from a lesion; NaN where cells are not known.
    over_chance
        The mean of the primary measure, less that of the lesion at random places.
    over_baselines
        By baseline, the mean difference of the primary measure.
    """

    primary: str
    patients: int
    share: Mapping[str, Interval] = field(default_factory=dict)
    tells_apart: Interval | None = None
    ceiling: float = float("nan")
    reached: float = float("nan")
    within_a_cell: float = float("nan")
    over_chance: Interval | None = None
    over_baselines: Mapping[str, Interval] = field(default_factory=dict)


def of_cohort(evidence: Evidence) -> Verdict:
    """Return the verdict of a cohort: as of a case, with intervals in the place of single numbers."""
    if evidence.patients < FEWEST:
        few = f"{evidence.patients} patients with a lesion: with fewer than {FEWEST} nothing is claimed of the cohort."
        return Verdict("untold", (few,), ("more patients with a lesion",))
    uses, use_words = _cohort_uses(evidence)
    missing = () if evidence.share else (_MODEL,)
    if uses is False:
        return Verdict("ignores", use_words)
    if uses is None and evidence.share and all(share.value < USED for share in evidence.share.values()):
        # An interval that holds both use and none shows neither, whatever the maps do.
        return Verdict("untold", use_words, ("more patients with a lesion, to see whether the network uses it",))
    over = evidence.over_chance
    if over is None or over.low != over.low:
        return Verdict("untold", ("Chance is not known for the primary measure.", *use_words), missing)
    placed = f"{_named(evidence)}: {_signed(over)} over chance."
    if evidence.ceiling < FINE and (evidence.reached >= REACHED or evidence.within_a_cell >= HIT):
        words = f"On cells of this layer the lesions themselves reach an average precision of {evidence.ceiling:.2f}."
        return Verdict("coarse", (words, placed, *use_words), missing)
    if over.low <= 0:
        return Verdict("wrong" if uses else "untold", (placed, *use_words), missing)
    level, worse = _against(evidence)
    told = (placed, *use_words, *worse)
    if any(name.startswith("random-weights") for name in level):
        return Verdict("wrong", (*worse, placed, *use_words), missing)
    if not evidence.over_baselines:
        return Verdict("agrees" if uses else "untold", told, (*missing, _IMAGE))
    if uses or not level:
        return Verdict("agrees", told, missing)
    return Verdict("untold", (*worse, placed, *use_words), missing)


def _cohort_uses(evidence: Evidence) -> tuple[bool | None, tuple[str, ...]]:
    words = []
    apart = evidence.tells_apart
    if apart is not None and apart.low == apart.low:
        words.append(f"The network tells cases with a lesion from those without by an AUC of {_plain(apart)}.")
    for fill, share in evidence.share.items():
        words.append(
            f"Of the score {_percent(share)} hangs on the lesions, beyond healthy regions of their shape, if {_filled(fill)}."
        )
    shares = [share for share in evidence.share.values() if share.low == share.low]
    if shares and all(share.high < USED for share in shares):
        return False, tuple(reversed(words))
    if apart is not None and apart.low <= 0.5:
        # What a network that cannot tell them apart shows is no use of the lesion.
        return False, tuple(words)
    if shares and all(share.low > 0 and share.value >= USED for share in shares):
        return True, tuple(words)
    return None, tuple(words)


def _against(evidence: Evidence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the baselines that the heatmaps are not clearly better than, and sentences on all."""
    level = tuple(name for name, apart in evidence.over_baselines.items() if not apart.low > 0)
    words = [
        f"{_named(evidence)}: {_signed(evidence.over_baselines[name])} over {name.replace('-', ' ')}"
        + (", no clear gain." if name in level else ".")
        for name in sorted(evidence.over_baselines, key=lambda name: evidence.over_baselines[name].value)
    ]
    return level, tuple(words)


def _of(numbers: Mapping[str, Measure], name: str) -> float:
    return numbers[name].value if name in numbers else float("nan")


def _said(words: str) -> tuple[str, ...]:
    return (words,) if words else ()


def _named(evidence: Evidence) -> str:
    words = evidence.primary.replace("_", " ").replace("@", " at ")
    return words[:1].upper() + words[1:]


def _filled(fill: str) -> str:
    """Return how the lesion was taken away, in words."""
    return "it is filled from its surroundings" if fill == "inpaint" else f"it is replaced by {fill}"


def _side(cell_mm: float) -> str:
    return f" ({cell_mm:.0f} mm)" if cell_mm == cell_mm else ""


def _plain(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _percent(interval: Interval) -> str:
    return f"{_whole(interval.value)} ({_whole(interval.low)} to {_whole(interval.high)})"


def _whole(share: float) -> str:
    """Return a share in per cent, without a sign where it rounds to none."""
    return f"{round(share, 2) + 0.0:.0%}"
