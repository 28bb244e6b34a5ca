"""Nodules of known place, from DICOM to `candidates.csv` by the commands a user types, over several seeds."""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl_cli.imaging.spots import Spots
from medssl_cli.metrics.froc import competition_metric, froc, marks_at
from medssl_cli.metrics.marks import FALSE_PER_IMAGE
from tests.nodule_phantoms import Phantom, annotations_csv, phantom, write_dicom

COLUMNS = ("seed", "nodules", "of scans", "sensitivity at 1", "CPM", "farthest hit / radius", "mean mm", "minutes")
RECIPE = """# Nodules of phantoms with vessels.
schema: 1
name: phantoms
seed: {seed}
split_seed: {seed}
backbone: {{name: unet, channels: [8, 16, 32], strides: [2, 2, 2], num_res_units: 0}}
task: {{name: detection, label_set: nodules, classes: [nodule], width: 32, match_overlap: 0.1, max_overlap: 0.2,
       max_boxes: 50}}
data: {{modality: CT, window_hu: [-1000, 400], spacing_mm: [1.0, 1.0, 1.5], crop_size: [48, 48, 32], batch_size: 4}}
augmentation: {{flip_prob: 0.5, scale_range: [0.8, 1.25], affine_prob: 0.2, rotate_degrees: 0}}
optimizer: {{learning_rate: 2.0e-3}}
steps: {steps}
validate_every: {steps}
checkpoint_every: {steps}
"""


@dataclass(frozen=True)
class NodulesFound:
    """One seed on its test patients, whom no training saw.

    Args:
        farthest: Largest distance of a hit from its nodule's centre, in radii.
        mean_mm: Mean distance of hits from the centre.
    """

    seed: int
    num_nodules: int
    num_scans: int
    sensitivity: tuple[float, ...]
    metric: float
    farthest: float
    mean_mm: float
    minutes: float

    def row(self) -> tuple[str, ...]:
        """One row of a table."""
        figures = (self.sensitivity[FALSE_PER_IMAGE.index(1)], self.metric, self.farthest, self.mean_mm, self.minutes)
        return (str(self.seed), str(self.num_nodules), str(self.num_scans), *(f"{value:.3f}" for value in figures))

    def to_json(self) -> dict[str, Any]:
        """As one document."""
        return asdict(self)


def bench_nodules(*, seeds: int, scans: int, steps: int) -> list[NodulesFound]:
    """Train on phantoms and find the nodules of others, once for each seed.

    Args:
        seeds: How often.
        scans: Phantoms to train and validate with; a quarter of as many is searched.
        steps: Steps of each training.
    """
    return [_one(seed, scans, steps) for seed in range(seeds)]


def _one(seed: int, scans: int, steps: int) -> NodulesFound:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        made = [
            phantom(10_000 * seed + number, shape=(96, 80, 48), num_nodules=number % 4, num_vessels=4)
            for number in range(scans + scans // 4)
        ]
        known, new = dict(enumerate(made[:scans])), dict(enumerate(made[scans:], start=scans))
        by_series = {write_dicom(root / "in", number, each): each for number, each in known.items()}
        unseen = {write_dicom(root / "new", number, each): each for number, each in new.items()}
        (root / "annotations.csv").write_text(annotations_csv(by_series))
        (root / "phantoms.yaml").write_text(RECIPE.format(seed=seed, steps=steps))
        cache = ("--cache", root / "cache")
        _medssl("ingest", root / "in", *cache)
        _medssl("ingest", root / "annotations.csv", *cache, "--label-set", "nodules")
        _medssl("finetune", "--task", root / "phantoms.yaml", *cache, "--device", "cpu", "--run", root / "run")
        _medssl("export", root / "run", root / "model.onnx", *cache)
        _medssl("infer", root / "new", "-t", root / "model.onnx", "-o", root / "out", "--device", "cpu")
        rows = list(csv.DictReader((root / "out" / "candidates.csv").read_text().splitlines()))
    return _scored(seed, rows, unseen, (time.monotonic() - start) / 60)


def _scored(seed: int, rows: Sequence[dict[str, str]], phantoms: dict[str, Phantom], minutes: float) -> NodulesFound:
    places, scores = [], []
    for series in phantoms:
        own = [row for row in rows if row["seriesuid"] == series]
        lps = np.array([[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in own]).reshape(-1, 3)
        places.append(lps * (-1, -1, 1))
        scores.append(np.array([float(row["probability"]) for row in own]))
    nodules = [Spots(each.centres_mm, each.diameters_mm) for each in phantoms.values()]
    marks = marks_at(places, scores, nodules, [Spots.none()] * len(nodules))
    away, shares = [], []
    for own, values, spots in zip(places, scores, nodules, strict=True):
        for hits, centre, diameter in zip(spots.hit_by(own).T, *spots, strict=True):
            if hits.any():
                best = np.flatnonzero(hits)[values[hits].argmax()]
                away.append(float(np.linalg.norm(own[best] - centre)))
                shares.append(away[-1] / (diameter / 2))
    return NodulesFound(
        seed,
        int(marks.num_boxes.sum()),
        len(phantoms),
        tuple(froc(marks).tolist()),
        float(competition_metric(marks)),
        max(shares, default=float("nan")),
        float(np.mean(away)) if away else float("nan"),
        minutes,
    )


def _medssl(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "medssl_cli", *map(str, arguments)], check=True, capture_output=True)
