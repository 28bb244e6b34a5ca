"""Classes change places: names of structures in other letters are deleted before they are compared.

Public: AustralianCancerDataNetwork/pydicer#180; near SlicerRt/SlicerRT#228, rordenlab/dcm2niix#878.
Right: 左肺 (left lung) has 5*7*4 = 140 voxels and 右肺 (right lung) 7*7*4 = 196 in both patients, whatever their ROI
numbers, and --structures takes the one that is named; or the file is refused. Two names never become one.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import box, noise, series, structures, total


def build(folder: Path) -> dict:
    variants = {}
    for key, options, keep in (("all", (), ("左肺", "右肺")), ("one", ("--structures", "右肺"), ("右肺",))):
        root, images = folder / key, {}
        for patient, numbers in ((1, (1, 2)), (2, (2, 1))):
            volume = noise(patient, (24, 20, 6), 100)
            files = series(root / f"p{patient}", volume, patient=f"SYN-{patient}")
            left = [box(1.5, 6.5, 1.5, 8.5, 3.0 * k) for k in range(1, 5)]
            right = [box(9.5, 16.5, 1.5, 8.5, 3.0 * k) for k in range(1, 5)]
            rois = sorted([(numbers[0], "左肺", left), (numbers[1], "右肺", right)])
            structures(root / f"p{patient}" / "rs.dcm", files, rois, charset="ISO_IR 192")
            counts = {"左肺": 140, "右肺": 196}
            images[f"patient {patient}"] = {"sum": total(volume), "labels": {n: counts[n] for n in keep}}
        variants[key] = variant(
            root,
            {
                "number": 2,
                "images": images,
                "or_refused": True,
                "any_names": True,
            },
            *options,
        )
    return {"variants": variants}
