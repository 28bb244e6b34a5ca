"""A chest CT that never was: a thorax of simple solids with HU-typical tissue and seven labelled heart structures.

It looks enough like a chest to show every stretch of the road, and no result on it says anything about patients.
All lengths are millimetres in RAS+: x towards the patient's right, y anterior, z superior. `draw_build` makes the
random choices, `thorax` draws them.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medssl_cli.demo.canvas import Array, Canvas, Frame, Point, Solid, cone, ellipsoid, tube, union

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
LONG_AXIS: Final = np.array([-0.66, 0.55, -0.51])
SPINE_Y: Final = -32.0
VERTEBRA_MM: Final = 25.0
AORTA_X, AORTA_Y = -27.0, -18.0


@dataclass(frozen=True)
class Phantom:
    """One drawn chest.

    Args:
        hu: `[X, Y, Z]` int16, Hounsfield units.
        labels: `[X, Y, Z]` uint8, 0 or a key of `STRUCTURES`.
        affine: `[4, 4]` float64, voxel-centre index to RAS+ millimetres.
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


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


def thorax(rng: np.random.Generator, *, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Phantom:
    """Draw a random chest.

    Args:
        rng: Of everything random.
        shape: Size (X, Y, Z) in voxels.
        spacing_mm: Voxel size. Shape times spacing of about 350 x 350 x 160 mm shows the whole chest.

    Returns:
        The phantom; its arrays run to the right, anterior and superior.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * np.asarray(spacing_mm) + (0, 0, 4)
    build = draw_build(rng)
    canvas = Canvas(shape, affine, background=AIR)
    _Body(canvas, build, rng).draw()
    _Heart(canvas, build, rng).draw()
    return Phantom(_scan(canvas, build, rng), canvas.labels, affine)


def _scan(canvas: Canvas, build: Build, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a scanner makes of the tissue: noise, smoothed with the picture by the kernel, in whole HU."""
    dx, dy, _ = np.diag(canvas.affine)[:3]
    sigma = (build.kernel_mm / dx, build.kernel_mm / dy, 0.25)
    # Noise is strongest where the rays cross most tissue.
    depth = np.exp(-((canvas.world[0] / 150) ** 2) - (canvas.world[1] / 110) ** 2)
    noise = (
        rng.standard_normal(canvas.values.shape, dtype=np.float32) * np.float32(build.noise_hu) * (0.4 + 0.8 * depth)
    )
    values = gaussian_filter(canvas.values + noise, sigma, mode="nearest")
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16)


class _Bend:
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


class _Painter:
    """Paints solids of one frame."""

    def __init__(self, canvas: Canvas, build: Build, frame: Frame, bend: _Bend) -> None:
        self.canvas, self.build, self.frame = canvas, build, frame
        self.x, self.y, self.z = canvas.coordinates(frame, bend)

    def paint(self, solid: Solid, value: float, *, label: int | None = None) -> None:
        box = self.canvas.box(solid, self.frame)
        distance = solid.distance(self.x[box], self.y[box], self.z[box])
        if distance.size:
            self.canvas.fill(distance, value, label=label, box=box)


class _Body(_Painter):
    """Skin, fat, muscle, bones, lungs, airways and the upper abdomen."""

    def __init__(self, canvas: Canvas, build: Build, rng: np.random.Generator) -> None:
        super().__init__(canvas, build, build.body, _Bend(rng, 4.0))
        self.rng = rng

    def draw(self) -> None:
        x, y, z = self.x, self.y, self.z
        taper = 1 - 0.22 * np.clip((z - 20) / 90, 0, 1) ** 2 - 0.05 * np.clip((-z - 20) / 80, 0, 1)
        cavity = _oval(x, y - 8, 132 * taper, 84 * taper, power=2.3)
        self._wall(cavity)
        self._lungs(cavity)
        self._abdomen(cavity)
        self._bones(cavity)
        self._mediastinum()

    def _wall(self, cavity: Array) -> None:
        x, y, fill, build = self.x, self.y, self.canvas.fill, self.build
        shoulders = 1 + 0.06 * np.clip((self.z - 20) / 60, 0, 1)
        skin = _oval(x, y, (152 + build.fat_mm) * shoulders, (104 + 0.75 * build.fat_mm) * shoulders, power=2.45)
        fill(_oval(x, y + 160, np.float32(230), np.float32(34), power=2.6), -930)
        fill(np.abs(_oval(x, y + 160, np.float32(230), np.float32(34), power=2.6)) - 1.8, -150)
        fill(skin, 10)
        fill(skin + 2, FAT)
        fill(skin + 2 + build.fat_mm * (1 + 0.35 * np.clip(np.abs(x) / 150, 0, 1)), MUSCLE)
        # Muscles lie in layers with a little fat between them, thickest behind.
        folds = 6 * self._texture(4.0)
        for depth_mm in (11, 21, 33):
            plane = np.abs(cavity - depth_mm - folds) - 0.6
            fill(np.maximum(plane, skin + build.fat_mm + 6), FAT + 20)

    def _texture(self, sigma: float) -> Array:
        """Smooth noise of unit variance, [X, Y, Z]."""
        noise = gaussian_filter(self.rng.standard_normal(self.x.shape, dtype=np.float32), (sigma, sigma, sigma / 1.5))
        return np.asarray(noise / noise.std(), dtype=np.float32)

    def _lungs(self, cavity: Array) -> None:
        x, y, z = self.x, self.y, self.z
        middle = _oval(x - 2, y - 28, np.float32(30), np.float32(66), power=2.0)
        spine = np.sqrt((x / 1.25) ** 2 + (y - SPINE_Y - 2) ** 2) - 21
        back = np.sqrt((x / 1.5) ** 2 + (y + 70) ** 2) - 24
        lungs = np.maximum.reduce([cavity, -middle, -spine, -back])
        # Blood settles: the back of the lung is a little denser.
        texture = self.build.lung_hu - 0.35 * y + 18 * self._texture(1.2)
        self.canvas.fill(cavity, FAT + 15)
        self.canvas.fill(np.maximum.reduce([-spine - 3, cavity]), FAT)
        self.canvas.fill(lungs, texture)
        self.lungs = lungs
        for side in (-1, 1):
            self._branch(np.array([side * 36.0, 4.0, 22.0]), np.array([side * 1.0, 0.0, 0.0]), 6.5, side)
        fissure = np.abs(z - 0.75 * y - 8 + 0.06 * np.abs(x)) - 0.5
        self.canvas.fill(np.maximum(fissure, lungs + 2), self.build.lung_hu + 330)

    def _branch(self, start: NDArray[np.float64], heading: NDArray[np.float64], radius_mm: float, side: int) -> None:
        """Grow a vessel and its branches outwards until they leave the chest or become too thin to see."""
        if radius_mm < 1.3:
            return
        for _ in range(5 if radius_mm > 5 else 2):
            turn = heading + self.rng.normal(0, 0.66, size=3) * (0.8, 1.1, 1.4)
            turn /= np.linalg.norm(turn)
            end = start + turn * (11 + 2.8 * radius_mm) * self.rng.uniform(0.75, 1.2)
            end = np.clip(end, (min(26 * side, 124 * side), -66, -90), (max(26 * side, 124 * side), 84, 130))
            thinner = radius_mm * self.rng.uniform(0.62, 0.8)
            vessel = cone(_point(start), _point(end), radius_mm, thinner)
            box = self.canvas.box(vessel, self.frame)
            distance = vessel.distance(self.x[box], self.y[box], self.z[box])
            if distance.size:
                self.canvas.fill(np.maximum(distance, self.lungs[box] + 1.5), self.build.right_hu * 0.8, box=box)
            self._branch(end, turn, thinner, side)

    def _abdomen(self, cavity: Array) -> None:
        up = self.build.diaphragm_mm
        right = ellipsoid((58, 8, -138 + up), (74, 82, 92))
        left = ellipsoid((-62, -2, -140 + up), (66, 76, 80))
        middle = ellipsoid((0, 40, -160 + up), (80, 50, 88))
        inside = np.maximum(union([right, left, middle]).distance(self.x, self.y, self.z), cavity)
        behind = np.maximum(inside, 22 - np.hypot(self.x / 1.25, self.y - SPINE_Y))
        self.canvas.fill(behind, MUSCLE)
        self.canvas.fill(behind + 3.5, FAT)
        liver = np.maximum(union([right, middle]).distance(self.x, self.y, self.z), behind) + 4
        self.canvas.fill(np.maximum(liver, -40 - self.x + 0.25 * self.y), self.build.liver_hu)
        self.paint(ellipsoid((-80, -38, -118 + up), (34, 36, 46)), self.build.liver_hu + 12)
        stomach = ellipsoid((-52, 26, -112 + up), (32, 30, 36))
        self.paint(stomach, 35)
        self.paint(stomach.grown(-4).cut(beyond=(-52, 34, 0), direction=(0, 1, 0)), -960)

    def _bones(self, cavity: Array) -> None:
        x, y, z, fill = self.x, self.y, self.z, self.canvas.fill
        # Ribs repeat along z and sink towards the front, where they end in cartilage.
        angle = np.abs(np.arctan2(x, -(y - 8))) / np.pi
        sink = 105 * np.minimum(angle, 0.74) / 0.74 - 60 * np.maximum(angle - 0.74, 0) / 0.26
        across = _wrapped(z + sink, VERTEBRA_MM) / 5.4
        ribs = (np.sqrt(((cavity - 6) / 3.6) ** 2 + across**2) - 1) * 3.6
        fill(np.maximum(ribs, (0.15 - angle) * 200), np.where(angle > 0.78, np.float32(CARTILAGE), np.float32(CORTEX)))
        fill(
            np.maximum(ribs + 2.4, (0.15 - angle) * 200),
            np.where(angle > 0.78, np.float32(CARTILAGE), np.float32(MARROW)),
        )
        sternum = ellipsoid((0, 97, 22), (19, 6.5, 92))
        for side in (-1, 1):
            turn = Rotation.from_euler("z", side * 38, degrees=True).as_matrix()
            blade = ellipsoid((side * 94, -72, 72), (40, 4.2, 54), turn)
            self.paint(blade, CORTEX - 150)
            self.paint(blade.grown(-1.8), MARROW + 100)
        self.paint(sternum, CORTEX - 180)
        self.paint(sternum.grown(-2.2), MARROW - 60)
        self._spine()

    def _spine(self) -> None:
        x, y, fill = self.x, self.y, self.canvas.fill
        level = _wrapped(self.z, VERTEBRA_MM)
        is_disc = np.clip((np.abs(level) - 10) / 1.5, 0, 1)
        body = np.hypot(x / 1.16, (y - SPINE_Y) + 0.006 * x**2) - 15.5
        fill(body, 430 - 340 * is_disc)
        fill(body + 2.6, MARROW - 115 * is_disc)
        arch = np.hypot(x / 1.25, y - SPINE_Y + 23) - 12.5
        fill(np.maximum(arch, -(body - 1)), 420 - 200 * is_disc)
        lamina = np.hypot(x, level * 0.8) - 4.5 + 0.1 * np.maximum(-80 - y, 0)
        fill(np.maximum.reduce([lamina, y - SPINE_Y + 30, SPINE_Y - 58 - y]), 380)
        transverse = np.hypot(y - SPINE_Y + 26 + 0.25 * np.abs(x), level) - 5.5
        fill(np.maximum.reduce([transverse, np.abs(x) - 40, 12 - np.abs(x)]), 400)
        fill(np.hypot(x / 1.1, y - SPINE_Y + 22) - 8, 30)

    def _mediastinum(self) -> None:
        blood = self.build.left_hu
        trachea = tube([(2, 0, 130), (3, -2, 66)], [9.5, 9.5])
        airways = [trachea, tube([(3, -2, 66), (24, -4, 46), (46, -6, 34)], [8, 7, 5]),
                   tube([(3, -2, 66), (-22, -5, 42), (-46, -10, 30)], [8, 6.5, 4.5])]  # fmt: skip
        oesophagus = tube([(-4, -12, 130), (-6, -13, 40), (-12, -6, -45), (-34, 8, -100)], [7, 7, 7.5, 9])
        self.paint(tube([(2, 4, 130), (2, 4, 70)], [20, 18]), FAT + 30)
        self.paint(oesophagus, MUSCLE - 10)
        self.paint(oesophagus.grown(-5.8), -300)
        for airway in airways:
            self.paint(airway.grown(2), 20)
        for airway in airways:
            self.paint(airway, -960)
        self.paint(tube([(AORTA_X, AORTA_Y, 62), (AORTA_X + 6, AORTA_Y - 2, -120)], [13.5, 12.5]), MUSCLE)
        self.paint(tube([(AORTA_X, AORTA_Y, 62), (AORTA_X + 6, AORTA_Y - 2, -120)], [12, 11]), blood)


class _Heart(_Painter):
    """Chambers, their walls, the great vessels and the fat around them, in the heart's own frame."""

    def __init__(self, canvas: Canvas, build: Build, rng: np.random.Generator) -> None:
        super().__init__(canvas, build, build.heart, _Bend(rng, 3.0))

    def draw(self) -> None:
        build, solids = self.build, self._solids()
        left, right = build.left_hu, build.right_hu
        arch = self._arch()
        veins = self._veins()
        outer = solids[5]
        around = [*(solids[label] for label in (2, 3, 4, 6, 7)), outer]
        self.paint(ellipsoid((-6, 44, -12), (50, 42, 50)), FAT)
        for solid in around:
            self.paint(solid.grown(6.5), FAT + 5)
        for solid in (*around, *veins, arch):
            self.paint(solid.grown(2.2), MUSCLE)
        for vein in veins[:2]:
            self.paint(vein, right)
        for vein in veins[2:]:
            self.paint(vein, left)
        self.paint(arch, left)
        self.paint(solids[4], right, label=4)
        self.paint(solids[3], left, label=3)
        self.paint(solids[2], right, label=2)
        self.paint(solids[7], right, label=7)
        self.paint(outer.grown(1.2), FAT + 70)
        self.paint(outer, build.myocardium_hu, label=5)
        self.paint(solids[6].grown(1.8), MUSCLE, label=0)
        self.paint(solids[6], left, label=6)
        self.paint(solids[1], left, label=1)

    def _solids(self) -> dict[int, Solid]:
        size, wall = self.build.chambers, self.build.wall_mm
        axis = LONG_AXIS / np.linalg.norm(LONG_AXIS)
        side = np.cross(axis, (0, 0, 1))
        side /= np.linalg.norm(side)
        axes = np.stack([axis, side, np.cross(axis, side)])
        cavity = (43 * size[1], 23 * size[1], 22 * size[1])
        centre = (-37.0, 43.0, -17.0)
        base, forward = _point(np.asarray(centre) - 0.62 * cavity[0] * axis), _point(axis)
        outer = (cavity[0] + 0.85 * wall, cavity[1] + wall, cavity[2] + wall)
        right_axis = np.array([-0.78, 0.38, -0.50])
        right_axis /= np.linalg.norm(right_axis)
        right_up = np.cross(right_axis, (0.3, 0.9, 0.2))
        right_up /= np.linalg.norm(right_up)
        right_axes = np.stack([right_axis, right_up, np.cross(right_axis, right_up)])
        inlet = ellipsoid((-6, 60, -22), (46 * size[2], 30 * size[2], 25 * size[2]), right_axes)
        outlet = tube([(2, 66, -14), (-10, 66, 12), (-15, 60, 28)], [19 * size[2], 15 * size[2], 13 * size[2]])
        atrium = ellipsoid((0, 7, 8), (33 * size[3], 19 * size[3], 23 * size[3]))
        appendage = tube([(-24, 14, 16), (-42, 30, 20), (-46, 42, 18)], [10 * size[3], 8 * size[3], 5 * size[3]])
        right_atrium = ellipsoid((39, 36, -10), (21 * size[4], 25 * size[4], 30 * size[4]))
        right_appendage = tube([(38, 50, 6), (24, 64, 18), (14, 70, 22)], [12 * size[4], 9 * size[4], 5 * size[4]])
        trunk = [(-15, 60, 28), (-17, 48, 44), (-20, 30, 54)]
        branches = [tube([(-17, 40, 50), (2, 20, 47), (26, 15, 42), (44, 8, 36)], [11, 10.5, 9.5, 7]),
                    tube([(-20, 30, 54), (-34, 12, 52), (-48, -4, 42)], [11, 9.5, 7])]  # fmt: skip
        return {
            1: ellipsoid(centre, cavity, axes).cut(beyond=base, direction=forward),
            2: union([inlet, outlet]),
            3: union([atrium, appendage]),
            4: union([right_atrium, right_appendage]),
            5: ellipsoid(centre, outer, axes).cut(beyond=base, direction=forward),
            6: tube([(-8, 34, 4), (2, 40, 22), (11, 42, 44), (12, 38, 66)],
                    [13 * size[6], 16 * size[6], 15 * size[6], 14.5 * size[6]]),
            7: union([tube(trunk, [13.5 * size[7], 13.5 * size[7], 12 * size[7]]), *branches]),
        }  # fmt: skip

    def _arch(self) -> Solid:
        """From the ascending aorta over the left bronchus to the descending aorta, wherever the body has put it."""
        end = self.frame.from_world(self.build.body.to_world((AORTA_X, AORTA_Y, 58)))
        radius = 14 * self.build.chambers[6]
        return tube([(12, 38, 66), (6, 26, 80), (-10, 4, 84), (-22, -12, 76), end], [radius, radius, 13, 12.5, 12])

    def _veins(self) -> list[Solid]:
        """Superior and inferior vena cava, then four pulmonary veins."""
        return [
            tube([(30, 24, 120), (36, 26, 60), (39, 32, 14)], [9, 9.5, 10]),
            tube([(37, 30, -30), (30, 16, -62), (24, 4, -110)], [11, 12, 11]),
            tube([(22, 4, 14), (48, 6, 26), (60, 12, 34)], [8, 6.5, 4]),
            tube([(24, 2, 2), (46, -12, -4), (62, -22, -12)], [8, 6.5, 4]),
            tube([(-22, 4, 16), (-44, 2, 28), (-58, 8, 38)], [8, 6.5, 4]),
            tube([(-24, 2, 2), (-44, -10, -6), (-60, -22, -14)], [8, 6.5, 4]),
        ]


def _oval(x: Array, y: Array, half_width: Array | float, half_depth: Array | float, *, power: float) -> Array:
    """Distance from a rounded rectangle in the slice, right to first order near its edge for mild powers."""
    radius = (np.abs(x / half_width) ** power + np.abs(y / half_depth) ** power) ** (1 / power)
    reach = np.hypot(x, y) / np.maximum(radius, 1e-3)
    return np.asarray((radius - 1) * reach, dtype=np.float32)


def _wrapped(values: Array, period: float) -> Array:
    """Values moved by whole periods into [-period / 2, period / 2)."""
    return np.asarray((values + period / 2) % period - period / 2, dtype=np.float32)


def _point(vector: NDArray[np.float64]) -> Point:
    return float(vector[0]), float(vector[1]), float(vector[2])
