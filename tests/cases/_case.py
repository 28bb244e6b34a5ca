"""What all cases share: calls of medssl, what a cache holds, and the comparison.

In what a case expects, a dictionary for each variant of its input:

| key | meaning |
|---|---|
| `exit`, `codes` | allowed exit codes; one of these codes must be in the report |
| `number` | number of stored images |
| `images` | name: `sum` of all voxels (which tells stored images apart), and what must be stored with it: `labels` as
  class name: voxels, `voxels` marked in all, `findings`, number of `boxes`, `units`, `modality` |
| `or_refused` | a refusal with an `E_` code is right, too, if what is stored with it is nothing (`"all"`: no image) |
| `or_note` | what is stored may differ if a `W_` or `E_` code says so |
| `any_names` | names may be written in another form, if different names stay different, the same in all images |
| `note` | some `W_` or `E_` code must be there |
| `not_sum`, `not_units` | what is wrong unless it is noted |
| `whole_or_marked` | number of slices; a shorter image must carry a note of its own |
| `patients` | groups of images that are one person |
"""

import json
import os
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from medssl_cli.cli.app import app
from tests.environment import ENVIRONMENT

QUIET = {"NO_COLOR": "1", "COLUMNS": "200"}


def variant(folder: Path, expect: dict, *options: str) -> dict:
    """One input folder, the options of `medssl ingest` for it, and the right outcome (see README.md)."""
    return {"input": folder.name, "options": list(options), "expect": expect}


def call(medssl: str, *arguments, cwd: Path | None = None, env: dict | None = None, timeout: float = 500):
    """Run medssl, in this process unless it needs a folder or an environment of its own; a finished process."""
    words = list(map(str, arguments))
    if cwd is not None or env is not None:
        environment = {**ENVIRONMENT, **QUIET, **(env or {})}
        return subprocess.run(
            [*medssl.split(), *words],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment,
            timeout=timeout,
        )
    mask = os.umask(0o022)
    try:
        done = CliRunner().invoke(app, words, env=QUIET)
    finally:
        os.umask(mask)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def ingest(medssl: str, cache: Path, *arguments) -> tuple[int, dict]:
    """`medssl ingest` into `cache`; returns the exit code and the report."""
    done = call(medssl, "ingest", *arguments, "--cache", cache, "--json", "-q", "--workers", "1")
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {"error": done.stderr[-500:]}
    return done.returncode, report


def stored(medssl: str, cache: Path) -> list[dict]:
    """The images of a cache with their sums of voxels, labels as {class name: voxels}, findings and number of boxes."""
    import nibabel
    import numpy as np

    done = call(medssl, "cache", "ls", "--cache", cache, "--json")
    if not done.stdout.strip():
        return []
    out = cache.parent / (cache.name + "-out")
    call(medssl, "cache", "export", out, "--cache", cache, "-q")
    images = []
    for record in json.loads(done.stdout):
        path = out / f"{record['item_id']}.nii.gz"
        voxels = np.asarray(nibabel.load(path).dataobj, float) if path.exists() else np.full(1, np.nan)
        labels = {}
        for label in record["labels"].values():
            labels |= {label["classes"].get(k, k): v for k, v in label["voxels_per_class"].items()}
        boxes = [b for found in record["boxes"].values() for b in found]
        findings = {k: v for found in record["findings"].values() for k, v in found.items()}
        images.append(
            {
                "sum": float(voxels.sum()),
                "labels": labels or None,
                "findings": findings or None,
                "voxels": sum(labels.values()),
                "slices": record["shape"][2],
                "boxes": len(boxes),
                "bright_box": _bright(voxels, boxes),
                "modality": record["modality"],
                "units": record["units"],
                "patient": record["patient_key"],
                "item": record["item_id"],
                "warnings": record["provenance"]["warnings"],
            }
        )
    return images


def _bright(voxels, boxes: list[dict]) -> bool | None:
    """Whether the first box covers what is much brighter than the picture."""
    if not boxes or voxels.ndim < 2:
        return None
    (x0, y0), (x1, y1) = ([round(c + 0.5) for c in boxes[0][k][:2]] for k in ("lower", "upper"))
    return bool(voxels[x0:x1, y0:y1].mean() > 2 * voxels.mean())


def differences(expect: dict, code: int, report: dict, images: list[dict]) -> list[str]:
    """How an outcome of ingest differs from what is expected; empty if it is right."""
    codes = set(report.get("by_code") or {}) | {w for image in images for w in image["warnings"]}
    # these notes come with many of the inputs and say nothing about the fault
    codes -= {
        "W_UNKNOWN_MODALITY",
        "W_NO_PATIENT_KEY",
        "W_LOSSY",
        "W_EPHEMERAL_KEY",
        "W_BURNED_IN_UNKNOWN",
        "W_HU_IMPLAUSIBLE",
    }
    refused = code in (3, 4) and any(c.startswith("E_") for c in codes)
    noted = any(c.startswith(("W_", "E_")) for c in codes)
    problems = []
    if "exit" in expect and code not in expect["exit"]:
        problems.append(f"exit code {code}, expected {expect['exit']}")
    if "codes" in expect and not codes & set(expect["codes"]):
        problems.append(f"codes {sorted(codes)}, expected one of {expect['codes']}")
    if expect.get("note") and not noted:
        problems.append("no warning and no error code")
    if "not_units" in expect and not noted:
        problems += [f"units {i['units']}, which is wrong" for i in images if i["units"] == expect["not_units"]]
    if "whole_or_marked" in expect:  # number of slices; a shorter image must carry a note of its own
        problems += [
            f"{i['slices']} of {expect['whole_or_marked']} slices stored without a note on the image"
            for i in images
            if i["slices"] < expect["whole_or_marked"] and not i["warnings"]
        ]
    if refused and expect.get("or_refused") == "all":
        return problems
    if "number" in expect and len(images) != expect["number"]:
        problems.append(f"{len(images)} images stored, expected {expect['number']}")
    if "not_sum" in expect and not noted and any(i["sum"] == expect["not_sum"] for i in images):
        problems.append(f"the voxel sum is {expect['not_sum']}, which is wrong")
    names: dict[str, str] = {}  # what a stored name means, the same in all images
    for name, wanted in expect.get("images", {}).items():
        near = [i for i in images if "sum" not in wanted or abs(i["sum"] - wanted["sum"]) <= 1e-5 * abs(wanted["sum"])]
        if not near and expect.get("or_note") and noted:
            continue
        if not near:
            problems.append(
                f"{name}: no stored image has the voxel sum {wanted['sum']:g}; sums {[i['sum'] for i in images]}"
            )
            continue
        for key in wanted.keys() - {"sum"}:
            got = near[0][key]
            if expect.get("any_names") and got and sorted(got.values()) == sorted(wanted[key].values()):
                by_value = {v: n for n, v in wanted[key].items()}
                meant = {n: by_value[v] for n, v in got.items()} if len(by_value) == len(got) else {}
                problems += [
                    f"{name}: {n!r} is another class in another image"
                    for n, m in meant.items()
                    if names.setdefault(n, m) != m
                ]
                continue
            is_nothing = not got and got is not False  # a box in the wrong place is something
            if got == wanted[key] or (expect.get("or_refused") and refused and is_nothing):
                continue
            if expect.get("or_note") and noted:
                continue
            problems.append(f"{name}: {key} {got}, expected {wanted[key]}")
    if "patients" in expect:  # groups of image names that are one person
        by_sum = {round(w["sum"]): n for n, w in expect["images"].items()}
        of = {}
        for image in images:
            of.setdefault(image["patient"], set()).add(by_sum.get(round(image["sum"])))
        for group in of.values():
            if len({frozenset(p) for p in expect["patients"] if group & set(p)}) > 1 and not noted:
                problems.append(f"one patient key for {sorted(map(str, group))}")
        for person in expect["patients"]:
            if (
                sum(bool(group & set(person)) for group in of.values()) > 1
                and not noted
                and "W_NO_PATIENT_KEY" not in (report.get("by_code") or {})
            ):
                problems.append(f"{person} are one person and have several keys")
    return problems
