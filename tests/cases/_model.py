"""A small trained task for the procedures: 12 synthetic MR patients, two structures, a few steps, one ONNX model.

It takes about a minute. With the environment variable CASES_MODEL (a folder) it is made once and used again.
"""

import json
import os
from pathlib import Path

import nibabel
import numpy as np

from tests.cases._case import call, ingest, stored
from tests.cases._dicom import noise, total
from tests.cases._nifti import blocks, write

RECIPE = """\
schema: 1
name: balls
backbone: {name: unet, channels: [4, 8, 8], strides: [1, 2, 2], num_res_units: 1}
task: {name: segmentation, classes: {1: one, 2: two}}
data: {modality: MR, zscore: true, spacing_mm: [2.0, 2.0, 2.0], crop_size: [16, 16, 16], batch_size: 2}
optimizer: {learning_rate: 1.0e-2}
steps: 60
validate_every: 60
checkpoint_every: 60
log_every: 1
"""


def patient(folder: Path, name: str, seed: int, shape=(24, 22, 20), images="images") -> None:
    """One image of noise with two bright blocks, and its label map beside it where `images` is "images"."""
    x = 2 + seed % 4
    mask = blocks({1: (x, x + 7, 4, 12, 5, 14), 2: (x + 9, x + 16, 9, 18, 5, 14)}, shape)
    write(folder / images / f"{name}.nii.gz", noise(seed, shape, 100, np.int16) + np.int16(300) * mask, (2.0, 2.0, 2.0))
    if images == "images":
        write(folder / "labels" / f"{name}.nii.gz", mask, (2.0, 2.0, 2.0))


def prepared(medssl: str, folder: Path) -> tuple[Path, Path]:
    """A cache of 12 labelled patients and the recipe; returns both paths."""
    cache, recipe = folder / "cache", folder / "balls.yaml"
    if not cache.exists():
        for i in range(12):
            patient(folder / "patients", f"case{i:03d}", i)
        recipe.write_text(RECIPE)
        code, report = ingest(medssl, cache, folder / "patients", "--modality", "MR")
        assert code == 0, report
    return cache, recipe


def finetune(medssl: str, recipe: Path, cache: Path, run: Path, *options):
    """`medssl finetune` on the CPU; options are `key=value`. Returns the finished process."""
    overrides = [word for option in options for word in ("--set", option)]
    return call(medssl, "finetune", "--task", recipe, "--cache", cache, "--run", run, "--device", "cpu", *overrides)


def short(steps: int) -> tuple[str, ...]:
    """Options for so many steps, validated once."""
    return f"steps={steps}", f"validate_every={steps}", f"checkpoint_every={steps}"


def trained(medssl: str, folder: Path) -> tuple[Path, Path, Path]:
    """The ONNX model, the run folder and the cache."""
    root = Path(os.environ.get("CASES_MODEL") or folder / "task").resolve()
    root.mkdir(parents=True, exist_ok=True)
    cache, recipe = prepared(medssl, root)
    run, model = root / "run", root / "balls.onnx"
    if not model.exists():
        for done in (finetune(medssl, recipe, cache, run), call(medssl, "export", run, model, "--cache", cache, "-q")):
            assert done.returncode == 0, done.stderr[-500:]
    return model, run, cache


def infer(medssl: str, model: Path, out: Path, *inputs, options=()) -> tuple[int, dict | None]:
    """`medssl infer` on the CPU; returns the exit code and report.json of the output folder."""
    done = call(medssl, "infer", *inputs, "--task", model, "-o", out, "--device", "cpu", "--no-preview", "-q", *options)
    report = out / "report.json"
    try:
        return done.returncode, json.loads(report.read_text())
    except (OSError, ValueError):
        return done.returncode, None


def split(medssl: str, folder: Path, key: Path) -> dict[str, set[str]]:
    """Which of the 12 patients are in train, val and test under a key file: case names, from a short training."""
    cache, recipe = folder / "cache", folder / "balls.yaml"
    names = {}
    for i in range(12):
        patient(folder / "patients", f"case{i:03d}", i)
        image = np.asarray(nibabel.load(folder / f"patients/images/case{i:03d}.nii.gz").dataobj)
        names[total(image)] = f"case{i:03d}"
    recipe.write_text(RECIPE)
    call(medssl, "key", "init", "--key-file", key)
    ingest(medssl, cache, folder / "patients", "--modality", "MR", "--key-file", key)
    done = finetune(medssl, recipe, cache, folder / "run", *short(2))
    assert done.returncode == 0, done.stderr[-500:]
    of_item = {image["item"]: names[round(image["sum"])] for image in stored(medssl, cache)}
    splits = json.loads((folder / "run/manifest.json").read_text())["splits"]
    return {name: {of_item[e["item"]] for e in entries} for name, entries in splits.items()}
