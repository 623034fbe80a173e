"""Which series a node explains, and when it takes one for complete."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, MRImageStorage

from medcam.errors import UsageError
from medcam.pacs.choosing import Choice, Rule, rules
from medcam.pacs.inbox_rows import SeriesRow
from medcam.pacs.readiness import Pace, complete_at, why_again

SERIES = SeriesRow(
    uid="1.2", study="1.1", modality="MR", peer="A@10.0.0.1", state="received", here=4, missing=0, removed=0, first=900.0,
    arrived=1000.0, changed=1000.0, due=0.0, released=1, tries=0, version=0, content="", words="", note="",
)  # fmt: skip
PACE = Pace(settle_s=30.0, give_up_s=600.0)


def header(**tags: object) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality, made.SeriesDescription = MRImageStorage, "MR", "Sag T1 MPRAGE"
    made.ImageType = ["ORIGINAL", "PRIMARY"]
    made.Manufacturer = "ACME"
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def test_all_series_are_explained_but_what_was_made_of_images() -> None:
    every = Choice()
    assert every.passes_over(header()) == ""
    assert every.passes_over(Dataset()) == ""
    ours = Dataset()
    ours.Manufacturer = "medcam"
    assert every.passes_over(header(ContributingEquipmentSequence=[ours])) == "medcam made it of other images"
    assert every.passes_over(header(ContributingEquipmentSequence=[header()])) == ""
    assert "derived" in every.passes_over(header(ImageType=["DERIVED", "SECONDARY", "MPR"]))
    assert "localizer" in every.passes_over(header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    film = header(SOPClassUID=DigitalXRayImageStorageForPresentation, ImageType=["DERIVED", "PRIMARY"])
    assert every.passes_over(film) == ""
    with_derived = Choice(derived=True)
    assert with_derived.passes_over(header(ImageType=["DERIVED", "SECONDARY"])) == ""
    assert with_derived.passes_over(header(ContributingEquipmentSequence=[ours])) == "medcam made it of other images"


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        (["modality=MR"], True),
        (["modality=mr,description~t1"], True),
        (["modality=MR,description~T2"], False),
        (["modality=CT", "description~t1"], True),
        (["modality!=MR"], False),
        (["description!~localizer , modality = MR"], True),
        (["body=HEAD"], False),
        (["body!=HEAD"], True),
        (["description=T1"], False),
    ],
)
def test_rules_say_which_series_are_asked_for(texts: list[str], asked: bool) -> None:
    choice = Choice(tuple(rules(each) for each in texts))
    assert (choice.passes_over(header()) == "") is asked
    assert rules("modality=CT")[0].holds(header(Modality="CT", SOPClassUID=CTImageStorage))


@pytest.mark.parametrize(
    "text", ["", "modality", "modality=", "patient=Doe", "modality=MR,,", "Modality>MR", "description"]
)
def test_what_is_no_rule_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(UsageError, match="modality=MR,description~T1"):
        rules(text)
    assert rules("a".join(["modality=MR", ""])) == (Rule("modality", "=", "MRa"),)


def test_a_series_is_complete_once_it_is_quiet_and_its_peer_has_left() -> None:
    assert complete_at(SERIES, PACE, peer_is_here=False, started=0.0) == 1030.0
    assert complete_at(SERIES, PACE, peer_is_here=True, started=0.0) == 1600.0
    assert complete_at(replace(SERIES, missing=2), PACE, peer_is_here=False, started=0.0) == 1600.0
    assert complete_at(replace(SERIES, released=0), PACE, peer_is_here=False, started=0.0) == 1600.0
    # Whoever sent when the node was killed gets time to come again.
    assert complete_at(SERIES, PACE, peer_is_here=False, started=1500.0) == 1530.0
    assert complete_at(replace(SERIES, due=1700.0), PACE, peer_is_here=False, started=0.0) == 1700.0


def test_a_series_with_a_gap_is_waited_for_and_then_given_up() -> None:
    assert why_again("a slice is missing", SERIES, pace=PACE, now=1040.0) == (
        1600.0,
        "waits for more images: a slice is missing",
    )
    assert why_again("a slice is missing", SERIES, pace=PACE, now=1600.0) is None
