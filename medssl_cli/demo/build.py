"""One random patient in one random scanner: everything about a phantom that is left to chance.

All lengths are millimetres in RAS+: x towards the patient's right, y anterior, z superior.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from medssl_cli.demo.canvas import Array, DemoCanvas, Frame, Point, Solid

STRUCTURES: Final[dict[int, str]] = {
    1: "left_ventricle",
    2: "right_ventricle",
    3: "left_atrium",
    4: "right_atrium",
    5: "left_ventricle_myocardium",
    6: "ascending_aorta",
    7: "pulmonary_artery",
}
Phase = Literal["native", "arterial", "pulmonary", "venous"]
# Blood of the left heart, blood of the right heart, myocardium, liver: typical HU (low, high) of each phase.
PHASES: Final[dict[Phase, tuple[tuple[float, float], ...]]] = {
    "native": ((36, 46), (36, 46), (44, 54), (50, 62)),
    "arterial": ((300, 430), (90, 200), (90, 130), (60, 80)),
    "pulmonary": ((150, 260), (320, 440), (80, 110), (55, 75)),
    "venous": ((140, 190), (140, 190), (90, 120), (95, 125)),
}
PHASE_PROB: Final[dict[Phase, float]] = {"native": 0.08, "arterial": 0.52, "pulmonary": 0.15, "venous": 0.25}
AIR, LUNG, FAT, MUSCLE, CARTILAGE, MARROW, CORTEX = -1000.0, -850.0, -100.0, 52.0, 95.0, 210.0, 620.0
AORTA_AT: Final = (-27.0, -18.0)


@dataclass(frozen=True)
class Build:
    """Everything about a patient and the scan that is left to chance, but for textures and small vessels.

    Args:
        body: Where the thorax lies in the scanner and how large it is.
        heart: Where the heart lies in the thorax and how large it is.
        fat_mm: Thickness of the fat under the skin.
        chambers: Relative size of each heart structure by label.
        wall_mm: Thickness of the left ventricle's wall.
        diaphragm_mm: How much higher than usual the diaphragm stands.
        lung_hu: Mean of the lungs, by inspiration.
        left_hu: Blood of the left heart and the aorta.
        right_hu: Blood of the right heart and the pulmonary artery.
        myocardium_hu: Heart muscle.
        liver_hu: Liver.
        noise_hu: Standard deviation of the noise before the kernel smooths it.
        kernel_mm: Standard deviation of the reconstruction kernel in the slice.
    """

    body: Frame
    heart: Frame
    fat_mm: float
    chambers: dict[int, float]
    wall_mm: float
    diaphragm_mm: float
    lung_hu: float
    left_hu: float
    right_hu: float
    myocardium_hu: float
    liver_hu: float
    noise_hu: float
    kernel_mm: float


def draw_build(rng: np.random.Generator) -> Build:
    """Draw one patient, one contrast phase and one scanner setting."""
    phases = list(PHASES)
    phase = phases[int(rng.choice(len(phases), p=[PHASE_PROB[name] for name in phases]))]
    left, right, myocardium, liver = (float(rng.uniform(low, high)) for low, high in PHASES[phase])
    body = _pose(rng, degrees=(3, 3, 4), scale=(0.93, 1.06), shift_mm=(8, 8, 5))
    heart = _pose(rng, degrees=(9, 9, 12), scale=(0.96, 1.16), shift_mm=(6, 4, 7), about=(-6, 42, -5))
    return Build(
        body=body,
        heart=Frame(body.linear @ heart.linear, body.to_world(heart.offset)),
        fat_mm=float(rng.uniform(5, 22)),
        chambers={label: float(rng.uniform(0.86, 1.14)) for label in STRUCTURES},
        wall_mm=float(rng.uniform(8.5, 13)),
        diaphragm_mm=float(rng.uniform(4, 24)),
        lung_hu=LUNG + float(rng.uniform(-30, 60)),
        left_hu=left,
        right_hu=left if phase in ("native", "venous") else right,
        myocardium_hu=myocardium,
        liver_hu=liver,
        noise_hu=float(rng.uniform(14, 45)),
        kernel_mm=float(rng.uniform(1.2, 2.6)),
    )


def _pose(
    rng: np.random.Generator,
    *,
    degrees: Point,
    scale: tuple[float, float],
    shift_mm: Point,
    about: Point = (0, 0, 0),
) -> Frame:
    rotation = Rotation.from_euler("xyz", rng.normal(0, np.asarray(degrees) / 2), degrees=True).as_matrix()
    linear = rotation * rng.uniform(*scale) * np.diag(rng.uniform(0.96, 1.04, size=3))
    offset = np.asarray(about) - linear @ np.asarray(about) + rng.normal(0, np.asarray(shift_mm) / 2)
    return Frame(linear, offset)


class Bend:
    """A smooth displacement field: a few sine waves along each axis."""

    def __init__(self, rng: np.random.Generator, amplitude_mm: float) -> None:
        self.amplitude = amplitude_mm
        self.waves = rng.normal(0, 1 / 38, size=(3, 2, 3)).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, size=(3, 2)).astype(np.float32)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        bends = [
            sum(
                np.sin(wave[0] * x + wave[1] * y + wave[2] * z + phase)
                for wave, phase in zip(waves, phases, strict=True)
            )
            for waves, phases in zip(self.waves, self.phases, strict=True)
        ]
        return np.asarray(np.stack([np.asarray(bend) for bend in bends]) * (self.amplitude / 2), dtype=np.float32)


class DemoPainter:
    """Paints solids of one frame."""

    def __init__(self, canvas: DemoCanvas, build: Build, frame: Frame, bend: Bend) -> None:
        self.canvas, self.build, self.frame = canvas, build, frame
        self.x, self.y, self.z = canvas.coordinates(frame, bend)

    def paint(self, solid: Solid, value: float, *, label: int | None = None) -> None:
        box = self.canvas.box(solid, self.frame)
        distance = solid.distance(self.x[box], self.y[box], self.z[box])
        if distance.size:
            self.canvas.fill(distance, value, label=label, box=box)
