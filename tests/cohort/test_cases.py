"""The table of cases: read as spreadsheets write it, and refused by the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcam.cohort.cases import read_table
from medcam.errors import InputError


def table(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    for name in ("a.nii.gz", "b.nii.gz", "m.nii.gz", "h.nii.gz"):
        (folder / name).touch()
    path = folder / "cases.csv"
    path.write_bytes(text.encode(encoding))
    return path


def refusal(folder: Path, text: str, *, with_model: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        read_table(table(folder, text), with_model=with_model)
    return str(caught.value)


def test_a_table_is_read_with_its_files_beside_it(tmp_path: Path) -> None:
    text = "case,patient,class,image,mask,label,truth,volume\n1,p,nodule,a.nii.gz|b.nii.gz,m.nii.gz,2,1,3\n\n2,p,,a.nii.gz,,,0,\n"
    first, second = read_table(table(tmp_path, text), with_model=True)
    assert (first.line, first.case, first.patient, first.target, first.label, first.truth, first.volume) == (
        2, "1", "p", "nodule", "2", 1, 3,
    )  # fmt: skip
    assert first.images == (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert first.mask == tmp_path / "m.nii.gz"
    assert (second.line, second.mask, second.truth, second.volume) == (4, None, 0, None)


def test_tables_of_spreadsheets_are_read_too(tmp_path: Path) -> None:
    text = "Case ID;Patient_ID;Image;Mask;;\n".replace("Case ID", "case_id") + "x;Ä;a.nii.gz;m.nii.gz;;\n"
    (entry,) = read_table(table(tmp_path, text, encoding="utf-8-sig"), with_model=True)
    assert (entry.case, entry.patient) == ("x", "Ä")


def test_a_repr_names_neither_case_nor_patient_nor_files(tmp_path: Path) -> None:
    text = "case,patient,image,mask\nMILLER,SMITH,a.nii.gz,m.nii.gz\n"
    (entry,) = read_table(table(tmp_path, text), with_model=True)
    assert not {"MILLER", "SMITH", "nii"} & set(repr(entry).replace("'", " ").replace("=", " ").split())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,p,c.nii.gz,m.nii.gz,", "line 2: its image 'c.nii.gz' is not there; did you mean"),
        ("1,p,a.nii.gz,,", "line 2: it has no mask; a case without a lesion says so by a truth of 0"),
        ("1,p,a.nii.gz,m.nii.gz,2", "line 2: its truth should be 0 or 1, not '2'"),
        ("1,,a.nii.gz,m.nii.gz,", "line 2: it has no patient"),
        ("1,p,,m.nii.gz,", "line 2: it has no heatmap, and it needs a heatmap, or an image and --model"),
        ("1,p,a.nii.gz,m.nii.gz,\n1,p,b.nii.gz,m.nii.gz,", "line 3: it has the case and class of line 2"),
        ("1,p,a.nii.gz,m.nii.gz,1,x", "line 2: 6 fields for 5 columns"),
    ],
)
def test_a_row_that_cannot_be_done_is_named_by_its_line(tmp_path: Path, rows: str, said: str) -> None:
    assert said in refusal(tmp_path, f"case,patient,image,mask,truth\n{rows}\n")


def test_a_case_of_two_patients_is_refused_without_naming_them(tmp_path: Path) -> None:
    text = "case,patient,class,image,mask\nx,SMITH,0,a.nii.gz,m.nii.gz\nx,JONES,1,a.nii.gz,m.nii.gz\n"
    said = refusal(tmp_path, text)
    assert "line 3: its case is that of line 2, of another patient" in said
    assert "SMITH" not in said
    assert "JONES" not in said


def test_without_a_model_each_row_needs_a_heatmap(tmp_path: Path) -> None:
    said = refusal(tmp_path, "case,patient,image,mask\n1,p,a.nii.gz,m.nii.gz\n", with_model=False)
    assert "--model makes it of the image" in said
    text = "case,patient,heatmap,mask\n1,p,h.nii.gz,m.nii.gz\n"
    assert read_table(table(tmp_path, text), with_model=False)[0].heatmap == tmp_path / "h.nii.gz"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,image,mask\n", "no column 'patient'"),
        ("case,patient,imgae,mask\n", "a column 'imgae'; did you mean image?"),
        ("case,patient,mask\n", "neither a column 'image' nor 'heatmap'"),
        ("case,patient,image,mask\n", "no rows"),
        ("case,patient,image,images\n", "two columns for 'image'"),
        ("", "no table"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_table_in_another_encoding_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_table(table(tmp_path, "case,patient,image\nx,Müller,a.nii.gz\n", encoding="latin-1"), with_model=True)
