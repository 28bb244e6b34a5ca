"""The thorax around the heart: skin, fat, muscle, bones, lungs, airways and the upper abdomen."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medssl_cli.demo.build import AORTA_AT, CARTILAGE, CORTEX, FAT, MARROW, MUSCLE, Bend, Build, DemoPainter
from medssl_cli.demo.canvas import Array, DemoCanvas, cone, ellipsoid, point, tube, union

SPINE_Y: Final = -32.0
VERTEBRA_MM: Final = 25.0
AORTA_X, AORTA_Y = AORTA_AT
Size = Array | np.floating[Any] | float


class Body(DemoPainter):
    """Skin, fat, muscle, bones, lungs, airways and the upper abdomen."""

    def __init__(self, canvas: DemoCanvas, build: Build, rng: np.random.Generator) -> None:
        super().__init__(canvas, build, build.body, Bend(rng, 4.0))
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
            vessel = cone(point(start), point(end), radius_mm, thinner)
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


def _oval(x: Array, y: Array, half_width: Size, half_depth: Size, *, power: float) -> Array:
    """Distance from a rounded rectangle in the slice, right to first order near its edge for mild powers."""
    radius = (np.abs(x / half_width) ** power + np.abs(y / half_depth) ** power) ** (1 / power)
    reach = np.hypot(x, y) / np.maximum(radius, 1e-3)
    return np.asarray((radius - 1) * reach, dtype=np.float32)


def _wrapped(values: Array, period: float) -> Array:
    """Values moved by whole periods into [-period / 2, period / 2)."""
    return np.asarray((values + period / 2) % period - period / 2, dtype=np.float32)
