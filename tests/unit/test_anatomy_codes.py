"""Names of structures have the codes that the standard's own dictionary gives them."""

from pathlib import Path

import pytest
from pydicom.sr.codedict import codes

from medssl_cli.formats.anatomy_codes import MODIFIERS, structure_code
from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe, recipe_names
from medssl_cli.tasks import task_options

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
NAMES += ["atrial_appendage_left"]
WITHOUT_CODE = [
    "vertebrae_S1",
    "portal_vein_and_splenic_vein",
    *(
        f"{name}_{side}"
        for name in ("hip", "iliopsoas", "gluteus_maximus", "gluteus_medius", "gluteus_minimus")
        for side in ("left", "right")
    ),
]
"""Names of TotalSegmentator's 117 for which DICOM lists no code."""
PRIVATE = {
    *WITHOUT_CODE,
    "prostate_or_uterus",
    "tumour_core",
    "portal_and_splenic_veins",
    "intestine",
    "normal",
    "other_pneumonia",
    "covid",
    "abnormal",
    "finding",
    "Atelectasis",
    "Calcification",
    "Consolidation",
    "Effusion",
    "Emphysema",
    "Hernia",
    "Infiltration",
    "Pleural_Thickening",
    "Pleural thickening",
    "Pneumonia",
    "Aortic enlargement",
    "ILD",
    "Lung Opacity",
}
"""Names of shipped recipes and of TotalSegmentator with a code of medssl: docs/reference/class-codes.md lists them."""


def test_of_the_117_names_of_totalsegmentator_105_have_a_code_of_the_standard() -> None:
    assert len({*NAMES, *WITHOUT_CODE}) == 117
    assert [name for name in NAMES if structure_code(name).is_private] == []
    assert [name for name in WITHOUT_CODE if not structure_code(name).is_private] == []


def test_every_class_of_a_shipped_recipe_has_a_code_and_private_ones_are_listed() -> None:
    found = set()
    for recipe in recipe_names("tasks"):
        task = load_recipe(find_recipe(recipe), is_sketch=True)
        assert isinstance(task, TaskRecipe)
        names = list(task_options(task).classes)
        found |= {name for name in names if structure_code(name, task=task.name).is_private}

    assert found <= PRIVATE
    page = (Path(__file__).parents[2] / "docs/reference/class-codes.md").read_text()
    assert [name for name in PRIVATE if f"`{name}`" not in page] == []


def test_private_codes_differ_by_name_and_say_it() -> None:
    value, scheme, meaning = structure_code("gluteus_maximus_left").type

    assert (scheme, meaning) == ("99MEDSSL", "gluteus_maximus_left")
    assert value != structure_code("gluteus_maximus_right").type[0]
    assert len(value) <= 16


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
        ("atrial_appendage_left", "LeftAuricularAppendage"),
        ("postcava", "InferiorVenaCava"),
        ("Head_of_femur_L", "HeadOfFemur"),
        ("face", "Face"),
        ("Pulmonary fibrosis", "Fibrosis"),
        ("Pleural effusion", "PleuralEffusion"),
        ("Pneumothorax", "Pneumothorax"),
        ("Cardiomegaly", "Cardiomegaly"),
    ],
)
def test_structures_have_the_codes_of_the_dictionary(name: str, word: str) -> None:
    assert structure_code(name).type[0] == getattr(codes.SCT, word).value


def test_a_side_is_that_of_the_structure_wherever_the_name_has_it() -> None:
    assert structure_code("kidney_cyst_left") == structure_code("left kidney cyst")
    assert structure_code("Head_of_femur_R").modifiers == (MODIFIERS["right"],)
    assert structure_code("rib_right_12").modifiers == (MODIFIERS["right"],)
