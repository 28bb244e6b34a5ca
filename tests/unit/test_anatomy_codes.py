"""Codes of structures are codes that DICOM lists, and names say which."""

import pytest
from pydicom.sr._concepts_dict import concepts

from medssl_cli.formats.anatomy_codes import (
    ABNORMAL_STRUCTURE,
    ANATOMICAL_STRUCTURE,
    GENERIC,
    LESIONS,
    MODIFIERS,
    STRUCTURES,
    SYNONYMS,
    structure_code,
)

NOT_IN_PYDICOM = {"74281007"}  # myocardium: PS3.16 CID 3712


def listed() -> dict[str, set[str]]:
    """Meanings by value of all SNOMED CT codes that DICOM's context groups use."""
    meanings: dict[str, set[str]] = {}
    for values in concepts["SCT"].values():
        for value, (meaning, _) in values.items():
            meanings.setdefault(value, set()).add(meaning.lower())
    return meanings


def test_every_code_is_one_of_dicoms_with_its_meaning() -> None:
    known = listed()
    codes = [ANATOMICAL_STRUCTURE, ABNORMAL_STRUCTURE, *STRUCTURES.values(), *LESIONS.values(), *MODIFIERS.values()]
    assert len(codes) > 60
    for value, scheme, meaning in codes:
        assert scheme == "SCT"
        if value not in NOT_IN_PYDICOM:
            plain = meaning.lower().replace(" cardiac ", " ")
            assert plain in known[value], (value, meaning, known[value])
    assert len({value for value, _, _ in codes}) == len(codes)


def test_every_synonym_leads_somewhere() -> None:
    assert all(target in {*STRUCTURES, *LESIONS} for target in SYNONYMS.values())


@pytest.mark.parametrize(
    ("name", "meaning", "modifiers"),
    [
        ("LV", "Left cardiac ventricle", []),
        ("Left ventricle", "Left cardiac ventricle", []),
        ("left_ventricle_myocardium", "Left Ventricle Myocardium", []),
        ("liver", "Liver", []),
        ("Spleen", "Spleen", []),
        ("kidneys", "Kidney", []),
        ("left kidney", "Kidney", ["Left"]),
        ("kidney_right", "Kidney", ["Right"]),
        ("Lungs", "Lung", []),
        ("right-lung", "Lung", ["Right"]),
        ("oesophagus", "Esophagus", []),
        ("adrenal_gland_left", "Adrenal gland", ["Left"]),
        ("hippocampus_anterior", "Hippocampus", ["Anterior"]),
        ("lung_upper_lobe_left", GENERIC.type[2], []),
        ("left", GENERIC.type[2], []),
        ("右肺", GENERIC.type[2], []),
        ("", GENERIC.type[2], []),
        ("spleen-ish", GENERIC.type[2], []),
    ],
)
def test_structures_by_name(name: str, meaning: str, modifiers: list[str]) -> None:
    code = structure_code(name)

    assert code.type[2] == meaning
    assert [modifier[2] for modifier in code.modifiers] == modifiers
    assert code.category == ANATOMICAL_STRUCTURE


def test_a_lesion_is_no_anatomical_structure_and_says_where_it_lies() -> None:
    code = structure_code("liver_tumour")

    assert (code.category, code.type[2]) == (ABNORMAL_STRUCTURE, "Neoplasm")
    assert code.region == STRUCTURES["liver"]
    assert structure_code("Lesions").type[2] == "Lesion"
    assert structure_code("nodule").region is None


def test_parts_without_their_whole_mean_something_in_its_task_only() -> None:
    assert structure_code("anterior", task="medssl hippocampus-seg").type[2] == "Hippocampus"
    assert structure_code("posterior", task="medssl hippocampus-seg").modifiers == (MODIFIERS["posterior"],)
    assert (
        structure_code("head", task="medssl hippocampus-seg") == GENERIC
        or structure_code("head", task="medssl hippocampus-seg").type[2] == "Hippocampus"
    )
    assert structure_code("anterior", task="medssl prostate-zones") == GENERIC
