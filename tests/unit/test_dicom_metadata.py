"""The allow-list: closed vocabularies and plain numbers get through, everything else is dropped."""

import pytest

from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.dicom.metadata import acquisition_of
from medssl_cli.formats.dicom.tags import TAGS
from medssl_cli.formats.dicom.values import Values


@pytest.mark.parametrize(
    ("element", "text", "field", "value"),
    [
        ("ImageType", "ORIGINAL\\PRIMARY\\AXIAL\\JOHN DOE", "image_type", ("ORIGINAL", "PRIMARY", "AXIAL")),
        ("BodyPartExamined", "chest ", "body_part", "CHEST"),
        ("BodyPartExamined", "C-SPINE", "body_part", "CSPINE"),
        ("BodyPartExamined", "Mr Doe's knee", "body_part", "unknown"),
        ("ImageLaterality", "L ", "laterality", "L"),
        ("Laterality", "R", "laterality", "R"),
        ("Laterality", "LEFT", "laterality", None),
        ("ViewPosition", "PA", "view_position", "PA"),
        ("ViewPosition", "upside down", "view_position", None),
        ("ContrastBolusAgent", "Omnipaque 300, lot 1234", "has_contrast_agent", True),
        ("ContrastBolusAgent", "NONE", "has_contrast_agent", False),
        ("ContrastBolusAgent", "", "has_contrast_agent", None),
        ("Manufacturer", "GE MEDICAL SYSTEMS", "manufacturer", "GE"),
        ("Manufacturer", "Siemens Healthineers", "manufacturer", "SIEMENS"),
        ("Manufacturer", "UIH", "manufacturer", "UNITED IMAGING"),
        ("Manufacturer", "Gepetto's workshop", "manufacturer", "unknown"),
        ("KVP", "120 ", "kvp", 120),
        ("KVP", "NaN", "kvp", None),
        ("KVP", "120\\140", "kvp", None),
        ("KVP", "1e9", "kvp", None),
        ("SliceThickness", "1.25", "slice_thickness_mm", 1.25),
        ("EchoTime", "30", "echo_time_ms", 30),
        ("LossyImageCompressionRatio", "12.5", "lossy_ratio", 12.5),
    ],
)
def test_what_is_not_on_the_list_is_dropped(element, text, field, value):
    acquisition = _acquisition({element: text.encode()})

    assert getattr(acquisition, field) == value
    assert acquisition == Acquisition(**{field: value})


@pytest.mark.parametrize(
    ("age", "years"),
    [("063Y", 60), ("065Y", 65), ("004Y", 0), ("018M", 0), ("072M", 5), ("400W", 5), ("010D", 0), ("099Y", 85),
     ("150Y", 85), ("63", None), ("-10Y", None), ("", None)],
)  # fmt: skip
def test_age_is_kept_in_steps_of_five_years_up_to_85(age, years):
    assert _acquisition({"PatientAge": age.encode()}, keep_demographics=True).age_from_years == years


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"X" * 5000, b"\\" * 4000, b"\x00"])
def test_garbage_in_any_element_refuses_nothing(text):
    acquisition = _acquisition(dict.fromkeys(TAGS, text), keep_demographics=True)

    # Any text says that there was an agent; no text says which.
    assert acquisition.model_copy(update={"has_contrast_agent": None}) == Acquisition()


def test_bits_and_diffusion_weighting_are_numbers():
    acquisition = acquisition_of(Values({TAGS["BitsStored"]: b"\x0c\x00"}, True), b_value=1e9, keep_demographics=False)

    assert (acquisition.bits_stored, acquisition.b_value) == (12, None)


def _acquisition(texts, *, keep_demographics=False):
    values = Values({TAGS[name]: text for name, text in texts.items()}, True)
    return acquisition_of(values, b_value=None, keep_demographics=keep_demographics)
