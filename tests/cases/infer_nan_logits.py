"""Wrong result: a model whose output is NaN gives an empty mask as if nothing had been found.

Right: not a finite logit, no mask: the scan fails with a code (E_RUNTIME), the exit code is not 0.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    from medssl_cli.deploy.onnx_file import seal  # as any program may seal a model: the seal is no signature

    model, _, _ = trained(medssl, folder)
    proto = onnx.load(model)
    bundle = next(p.value for p in proto.metadata_props if p.key == "medssl.bundle")
    assert json.loads(bundle)
    del proto.metadata_props[:]
    weights = next(t for t in proto.graph.initializer if t.data_type == 1 and len(t.dims) == 5)
    weights.CopyFrom(numpy_helper.from_array(np.full(tuple(weights.dims), np.nan, np.float32), weights.name))
    broken = folder / "nan.onnx"
    broken.write_bytes(seal(proto.SerializeToString(), bundle))
    patient(folder, "a", 1, images="in")
    code, _report = infer(medssl, broken, folder / "out", folder / "in")
    return {
        "expected": {"refused": True, "masks": 0},
        "found": {"exit": code, "refused": code != 0, "masks": len(list((folder / "out").glob("*.nii.gz")))},
    }
