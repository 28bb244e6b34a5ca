"""A way out that does not exist: hints of infer name options that only ingest has.

Right: every option that a hint of infer names is an option of infer (--tilt, --gaps, --split-4d ...), or the hint says
that ingest has it.
"""

import re
from pathlib import Path

import numpy as np

from tests.cases._case import call
from tests.cases._dicom import noise, series
from tests.cases._model import infer, trained
from tests.cases._nifti import write


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    angle = np.deg2rad(15)
    series(
        folder / "in/tilted",
        noise(1, (24, 22, 8)),
        modality="MR",
        step=(0, 4 * np.sin(angle), 4 * np.cos(angle)),
        spacing=(2, 2, 4),
    )
    series(folder / "in/gap", noise(2, (24, 22, 8)), modality="MR", spacing=(2, 2, 4), patient="SYN-2")
    (folder / "in/gap/im_0004.dcm").unlink()
    write(folder / "in/four.nii.gz", noise(3, (24, 22, 12, 2), 900, np.int16), (2, 2, 2))
    _, report = infer(medssl, model, folder / "out", folder / "in")
    named = sorted(
        set(re.findall(r"--[a-z0-9][a-z0-9-]*", " ".join(r.get("hint", "") for r in (report or {}).get("results", []))))
    )
    options = call(medssl, "infer", "--help").stdout
    return {
        "expected": {"unknown_options": []},
        "found": {"named": named, "unknown_options": [o for o in named if o not in options]},
    }
