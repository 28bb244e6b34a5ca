"""Unfair refusal: enhanced MR whose volumes are told apart by Dimension Index Values (and gradient directions) only.

Public: rordenlab/dcm2niix#546, rordenlab/dcm2niix#809, rordenlab/dcm2niix#529.
Right: PS3.3 C.7.6.17: the dimension index orders the frames; three volumes of 6 slices each.
"""

from pathlib import Path

import numpy as np
from pydicom.sequence import Sequence

from tests.cases._case import variant
from tests.cases._dicom import enhanced, item, noise, total


def build(folder: Path) -> dict:
    variants = {}
    for kind in ("index_only", "directions"):

        def edit(ds, pairs, kind=kind):
            for group, (t, _) in zip(ds.PerFrameFunctionalGroupsSequence, pairs, strict=True):
                content = group.FrameContentSequence[0]
                del (
                    content.TemporalPositionIndex,
                    content.FrameAcquisitionDateTime,
                    content.StackID,
                    content.InStackPositionNumber,
                )
                if kind == "directions":
                    direction = item(DiffusionGradientOrientation=[float(t == 0), float(t == 1), float(t == 2)])
                    group.MRDiffusionSequence = Sequence(
                        [
                            item(
                                DiffusionBValue=1000.0,
                                DiffusionDirectionality="DIRECTIONAL",
                                DiffusionGradientDirectionSequence=[direction],
                            )
                        ]
                    )

        volumes = [noise(8 + t, (14, 12, 6), 100) + np.uint16(100 * t) for t in range(3)]
        enhanced(folder / kind / "mf.dcm", volumes, order="slice", edit=edit)
        images = {f"volume {t + 1}": {"sum": total(v)} for t, v in enumerate(volumes)}
        variants[kind] = variant(folder / kind, {"exit": [0], "number": 3, "images": images})
    return {"variants": variants}
