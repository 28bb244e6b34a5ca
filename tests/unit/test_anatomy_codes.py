"""Names of structures have the codes that the standard's own dictionary gives them."""

import pytest
from pydicom.sr.codedict import codes

from medssl_cli.formats.anatomy_codes import GENERIC, MODIFIERS, structure_code

SIDED = [
    "kidney",
    "adrenal_gland",
    "lung_upper_lobe",
    "lung_lower_lobe",
    "kidney_cyst",
    "subclavian_artery",
    "common_carotid_artery",
    "brachiocephalic_vein",
    "iliac_artery",
    "iliac_vena",
    "humerus",
    "scapula",
    "clavicula",
    "femur",
    "autochthon",
]
ALONE = [
    "spleen",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "lung_middle_lobe_right",
    "esophagus",
    "trachea",
    "thyroid_gland",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "sacrum",
    "heart",
    "aorta",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    "superior_vena_cava",
    "inferior_vena_cava",
    "spinal_cord",
    "brain",
    "skull",
    "sternum",
    "costal_cartilages",
]
VERTEBRAE = [f"{part}{number}" for part, count in (("C", 7), ("T", 12), ("L", 5)) for number in range(1, count + 1)]
RIBS = [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)]
NAMES = [*ALONE, *(f"{name}_{side}" for name in SIDED for side in ("left", "right")), *RIBS]
NAMES += [f"vertebrae_{name}" for name in VERTEBRAE]
WITHOUT_CODE = [
    "vertebrae_S1",
    "atrial_appendage_left",
    "portal_vein_and_splenic_vein",
    "hip_left",
    "hip_right",
    "iliopsoas_left",
    "iliopsoas_right",
    "gluteus_maximus_left",
    "gluteus_maximus_right",
    "gluteus_medius_left",
    "gluteus_medius_right",
    "gluteus_minimus_left",
    "gluteus_minimus_right",
]
"""Names of TotalSegmentator's 117 for which no code is sure: reports give them private ones."""


def test_of_all_names_of_totalsegmentator_104_have_a_code() -> None:
    assert len({*NAMES, *WITHOUT_CODE}) == 117
    assert [name for name in NAMES if structure_code(name) == GENERIC] == []
    assert [name for name in WITHOUT_CODE if structure_code(name) != GENERIC] == []


@pytest.mark.parametrize("name", VERTEBRAE)
def test_vertebrae_have_the_codes_of_the_dictionary(name: str) -> None:
    assert structure_code(f"vertebrae_{name}").type[0] == getattr(codes.SCT, f"{name}Vertebra").value


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("brachiocephalic_trunk", "BrachiocephalicTrunk"),
        ("subclavian_artery_left", "SubclavianArtery"),
        ("common_carotid_artery_right", "CommonCarotidArtery"),
        ("brachiocephalic_vein_left", "BrachiocephalicVein"),
        ("iliac_artery_left", "IliacArtery"),
        ("iliac_vena_right", "IliacVein"),
        ("autochthon_left", "ErectorSpinaeMuscle"),
        ("costal_cartilages", "CostalCartilage"),
        ("lung_upper_lobe_left", "UpperLobeOfLung"),
        ("lung_lower_lobe_right", "LowerLobeOfLung"),
        ("lung_middle_lobe_right", "MiddleLobeOfRightLung"),
        ("rib_left_7", "Rib"),
    ],
)
def test_structures_have_the_codes_of_the_dictionary(name: str, word: str) -> None:
    assert structure_code(name).type[0] == getattr(codes.SCT, word).value


def test_a_side_is_that_of_the_structure_wherever_the_name_has_it() -> None:
    assert structure_code("kidney_cyst_left") == structure_code("left kidney cyst")
    assert structure_code("rib_right_12").modifiers == (MODIFIERS["right"],)
