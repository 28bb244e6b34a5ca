"""SNOMED CT codes of structures by their names, as DICOM SEG needs them (PS3.16 CID 7150 and following).

Only codes that DICOM itself lists are given; every other structure has a private code that says its name.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medssl_cli.formats.seg_attributes import clean_text

Code = tuple[str, str, str]
"""Value, coding scheme and meaning."""


@dataclass(frozen=True)
class StructureCode:
    """What a segment is.

    Args:
        category: Segmented Property Category, the kind of thing.
        type: Segmented Property Type.
        modifiers: Modifiers of the type: side and part.
        region: Where a lesion lies, if its name says so.
        colour: Recommended for display: red, green and blue, 0 to 255.
    """

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()
    region: Code | None = None
    colour: tuple[int, int, int] | None = None

    @property
    def is_private(self) -> bool:
        """Whether the code is one of medssl, because none of the standard is sure."""
        return self.type[1] == PRIVATE_SCHEME


def _sct(value: str, meaning: str) -> Code:
    return value, "SCT", meaning


ANATOMICAL_STRUCTURE: Final = _sct("91723000", "Anatomical structure")
ABNORMAL_STRUCTURE: Final = _sct("49755003", "Morphologically Abnormal Structure")
PRIVATE_SCHEME: Final = "99MEDSSL"
STRUCTURES: Final[dict[str, Code]] = {
    name: _sct(value, meaning)
    for name, value, meaning in (
        ("heart", "80891009", "Heart"),
        ("left_ventricle", "87878005", "Left cardiac ventricle"),
        ("right_ventricle", "53085002", "Right cardiac ventricle"),
        ("left_atrium", "82471001", "Left cardiac atrium"),
        ("right_atrium", "73829009", "Right cardiac atrium"),
        ("myocardium", "74281007", "Myocardium"),
        ("atrial_appendage_left", "33626005", "Left auricular appendage"),
        ("left_ventricle_myocardium", "49848007", "Left Ventricle Myocardium"),
        ("pericardium", "76848001", "Pericardium"),
        ("aorta", "15825003", "Aorta"),
        ("ascending_aorta", "54247002", "Ascending aorta"),
        ("descending_aorta", "281130003", "Descending aorta"),
        ("thoracic_aorta", "113262008", "Thoracic aorta"),
        ("abdominal_aorta", "7832008", "Abdominal aorta"),
        ("pulmonary_artery", "81040000", "Pulmonary artery"),
        ("pulmonary_vein", "122972007", "Pulmonary vein"),
        ("inferior_vena_cava", "64131007", "Inferior vena cava"),
        ("superior_vena_cava", "48345005", "Superior vena cava"),
        ("portal_vein", "32764006", "Portal vein"),
        ("hepatic_vein", "8993003", "Hepatic vein"),
        ("lung", "39607008", "Lung"),
        ("trachea", "44567001", "Trachea"),
        ("esophagus", "32849002", "Esophagus"),
        ("stomach", "69695003", "Stomach"),
        ("duodenum", "38848004", "Duodenum"),
        ("small_intestine", "30315005", "Small intestine"),
        ("colon", "71854001", "Colon"),
        ("rectum", "34402009", "Rectum"),
        ("liver", "10200004", "Liver"),
        ("gallbladder", "28231008", "Gallbladder"),
        ("pancreas", "15776009", "Pancreas"),
        ("spleen", "78961009", "Spleen"),
        ("kidney", "64033007", "Kidney"),
        ("adrenal_gland", "23451007", "Adrenal gland"),
        ("bladder", "89837001", "Bladder"),
        ("prostate", "41216001", "Prostate"),
        ("prostate_peripheral_zone", "279706003", "Peripheral zone of the prostate"),
        ("prostate_transition_zone", "399384005", "Transition zone of the prostate"),
        ("uterus", "35039007", "Uterus"),
        ("breast", "76752008", "Breast"),
        ("thyroid", "69748006", "Thyroid"),
        ("parotid_gland", "45289007", "Parotid gland"),
        ("submandibular_gland", "54019009", "Submandibular gland"),
        ("larynx", "4596009", "Larynx"),
        ("mandible", "91609006", "Mandible"),
        ("eye", "81745001", "Eye"),
        ("brain", "12738006", "Brain"),
        ("cerebellum", "113305005", "Cerebellum"),
        ("hippocampus", "5366008", "Hippocampus"),
        ("spinal_cord", "2748008", "Spinal cord"),
        ("vertebra", "51282000", "Vertebra"),
        ("rib", "113197003", "Rib"),
        ("sternum", "56873002", "Sternum"),
        ("clavicle", "51299004", "Clavicle"),
        ("scapula", "79601000", "Scapula"),
        ("humerus", "85050009", "Humerus"),
        ("femur", "71341001", "Femur"),
        ("head_of_femur", "2812003", "Head of Femur"),
        ("face", "89545001", "Face"),
        ("sacrum", "54735007", "Sacrum"),
        ("skull", "89546000", "Skull"),
        ("brachiocephalic_trunk", "12691009", "Brachiocephalic trunk"),
        ("subclavian_artery", "36765005", "Subclavian artery"),
        ("common_carotid_artery", "32062004", "Common carotid artery"),
        ("brachiocephalic_vein", "8887007", "Brachiocephalic vein"),
        ("splenic_vein", "35819009", "Splenic vein"),
        ("iliac_artery", "10293006", "Iliac artery"),
        ("iliac_vein", "244411005", "Iliac vein"),
        ("erector_spinae", "44947003", "Erector spinae muscle"),
        ("costal_cartilage", "50016007", "Costal cartilage"),
        ("lung_upper_lobe", "45653009", "Upper lobe of lung"),
        ("lung_lower_lobe", "90572001", "Lower lobe of lung"),
        ("lung_middle_lobe_right", "72481006", "Middle lobe of right lung"),
        ("vertebrae_c1", "14806007", "C1 vertebra"),
        ("vertebrae_c2", "39976000", "C2 vertebra"),
        ("vertebrae_c3", "113205007", "C3 vertebra"),
        ("vertebrae_c4", "5329002", "C4 vertebra"),
        ("vertebrae_c5", "36978003", "C5 vertebra"),
        ("vertebrae_c6", "36054005", "C6 vertebra"),
        ("vertebrae_c7", "87391001", "C7 vertebra"),
        ("vertebrae_t1", "64864005", "T1 vertebra"),
        ("vertebrae_t2", "53733008", "T2 vertebra"),
        ("vertebrae_t3", "1626008", "T3 vertebra"),
        ("vertebrae_t4", "73071006", "T4 vertebra"),
        ("vertebrae_t5", "56401006", "T5 vertebra"),
        ("vertebrae_t6", "45296009", "T6 vertebra"),
        ("vertebrae_t7", "62487009", "T7 vertebra"),
        ("vertebrae_t8", "11068009", "T8 vertebra"),
        ("vertebrae_t9", "82687006", "T9 vertebra"),
        ("vertebrae_t10", "7610001", "T10 vertebra"),
        ("vertebrae_t11", "12989004", "T11 vertebra"),
        ("vertebrae_t12", "23215003", "T12 vertebra"),
        ("vertebrae_l1", "66794005", "L1 vertebra"),
        ("vertebrae_l2", "14293000", "L2 vertebra"),
        ("vertebrae_l3", "36470004", "L3 vertebra"),
        ("vertebrae_l4", "11994002", "L4 vertebra"),
        ("vertebrae_l5", "49668003", "L5 vertebra"),
    )
}
LESIONS: Final[dict[str, Code]] = {
    name: _sct(value, meaning)
    for name, value, meaning in (
        ("tumor", "108369006", "Neoplasm"),
        ("lesion", "52988006", "Lesion"),
        ("nodule", "27925004", "Nodule"),
        ("mass", "4147007", "Mass"),
        ("cyst", "367643001", "Cyst"),
        ("edema", "79654002", "Edema"),
        ("necrosis", "6574001", "Necrosis"),
        ("hemorrhage", "50960005", "Hemorrhage"),
        ("thrombus", "396339007", "Thrombus"),
        ("scar", "12402003", "Scar tissue"),
        ("fibrosis", "112674009", "Fibrosis"),
        ("cardiomegaly", "287272002", "Cardiomegaly"),
        ("pneumothorax", "36118008", "Pneumothorax"),
        ("pleural_effusion", "60046008", "Pleural effusion"),
    )
}
MODIFIERS: Final[dict[str, Code]] = {
    "left": _sct("7771000", "Left"),
    "right": _sct("24028007", "Right"),
    "anterior": _sct("255549009", "Anterior"),
    "posterior": _sct("255551008", "Posterior"),
}
SIDES: Final = ("left", "right")
LETTERS: Final = {"l": "left", "r": "right"}
"""Sides at the end of a name."""
SYNONYMS: Final[dict[str, str]] = {
    "lv": "left_ventricle",
    "rv": "right_ventricle",
    "la": "left_atrium",
    "ra": "right_atrium",
    "heart_ventricle_left": "left_ventricle",
    "heart_ventricle_right": "right_ventricle",
    "heart_atrium_left": "left_atrium",
    "heart_atrium_right": "right_atrium",
    "myo": "myocardium",
    "heart_myocardium": "myocardium",
    "lv_myocardium": "left_ventricle_myocardium",
    "left_ventricular_myocardium": "left_ventricle_myocardium",
    "left_ventricle_cavity": "left_ventricle",
    "right_ventricle_cavity": "right_ventricle",
    "postcava": "inferior_vena_cava",
    "aa": "aorta",
    "ao": "aorta",
    "pa": "pulmonary_artery",
    "oesophagus": "esophagus",
    "small_bowel": "small_intestine",
    "gall_bladder": "gallbladder",
    "adrenal": "adrenal_gland",
    "urinary_bladder": "bladder",
    "thyroid_gland": "thyroid",
    "clavicula": "clavicle",
    "costal_cartilages": "costal_cartilage",
    "iliac_vena": "iliac_vein",
    "autochthon": "erector_spinae",
    "peripheral_zone": "prostate_peripheral_zone",
    "transition_zone": "prostate_transition_zone",
    "tumour": "tumor",
    "neoplasm": "tumor",
    "cancer": "tumor",
    "haemorrhage": "hemorrhage",
    "oedema": "edema",
}
PARTS_OF_ONE: Final = {"hippocampus": ("anterior", "posterior", "head", "body", "tail")}
"""Names that mean a part of a structure where the task is about that structure, and nothing elsewhere."""


def structure_code(name: str, *, task: str = "") -> StructureCode:
    """The code of a structure; a private one, which says its name, if that is not known.

    Args:
        name: Name of the class, in any case, with spaces, hyphens or underscores.
        task: What the model is for; `anterior` is a part of the hippocampus only in a task about it.
    """
    words = tuple(word for word in re.split(r"[\W_]+", name.lower()) if word)
    if len(words) > 1 and words[-1] in LETTERS:
        words = (*words[:-1], LETTERS[words[-1]])
    for whole, parts in PARTS_OF_ONE.items():
        if whole in task.lower() and len(words) == 1 and words[0] in parts:
            words = (whole, *words)
    if "rib" in words and words[-1].isdecimal():
        words = words[:-1]  # which rib it is, the label says
    return _lesion(words) or _organ(words) or StructureCode(ANATOMICAL_STRUCTURE, private_code(name))


def private_code(name: str) -> Code:
    """A code of medssl for a name: the same wherever the name is the same."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"C{digest[:12]}", PRIVATE_SCHEME, clean_text(name) or "Body structure"


def _lesion(words: Sequence[str]) -> StructureCode | None:
    if len(words) > 2 and words[-1] in SIDES and _singular(words[-2]) in LESIONS:
        words = (*words[:-2], words[-1], words[-2])
    if (finding := LESIONS.get("_".join(words))) is not None:
        return StructureCode(ABNORMAL_STRUCTURE, finding)
    if not words or (lesion := LESIONS.get(_singular(words[-1]))) is None:
        return None
    organ = _organ(words[:-1])
    if organ is None:
        return StructureCode(ABNORMAL_STRUCTURE, lesion)
    return StructureCode(ABNORMAL_STRUCTURE, lesion, region=organ.type)


def _organ(words: Sequence[str]) -> StructureCode | None:
    """A structure as it is called, or with one word of side or part taken away."""
    if (code := STRUCTURES.get(_key(words))) is not None:
        return StructureCode(ANATOMICAL_STRUCTURE, code)
    for position, word in enumerate(words):
        rest = [*words[:position], *words[position + 1 :]]
        if word in MODIFIERS and (code := STRUCTURES.get(_key(rest))) is not None:
            return StructureCode(ANATOMICAL_STRUCTURE, code, (MODIFIERS[word],))
    return None


def _key(words: Sequence[str]) -> str:
    """The name under which a structure is listed: synonyms replaced, plural endings taken away."""
    given = "_".join(words)
    for key in (given, "_".join([*words[:-1], _singular(words[-1])]) if words else ""):
        if (known := SYNONYMS.get(key, key)) in STRUCTURES:
            return known
    return given


def _singular(word: str) -> str:
    plain = word[:-1] if word.endswith("s") and word[:-1] in {*STRUCTURES, *LESIONS, *SYNONYMS} else word
    return SYNONYMS.get(plain, plain)
