"""A chest CT that never was: a thorax of simple solids with HU-typical tissue and seven labelled heart structures.

It looks enough like a chest to show every stretch of the road, and no result on it says anything about patients.
`build` draws a patient by lot, `chest` and `heart` paint it onto a `canvas`, and here a scanner looks at it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medssl_cli.demo.build import AIR, STRUCTURES, Build, draw_build
from medssl_cli.demo.canvas import DemoCanvas
from medssl_cli.demo.chest import Body
from medssl_cli.demo.heart import Heart

__all__ = ["STRUCTURES", "Phantom", "thorax"]


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


def thorax(rng: np.random.Generator, *, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Phantom:
    """Draw a random chest.

    Args:
        rng: Source of everything random.
        shape: Size (X, Y, Z) in voxels.
        spacing_mm: Voxel size. Shape times spacing of about 350 x 350 x 160 mm shows the whole chest.

    Returns:
        The phantom; its arrays run to the right, anterior and superior.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * np.asarray(spacing_mm) + (0, 0, 4)
    build = draw_build(rng)
    canvas = DemoCanvas(shape, affine, background=AIR)
    Body(canvas, build, rng).draw()
    Heart(canvas, build, rng).draw()
    return Phantom(_scan(canvas, build, rng), canvas.labels, affine)


def _scan(canvas: DemoCanvas, build: Build, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a scanner makes of the tissue: noise, smoothed with the picture by the kernel, in whole HU."""
    dx, dy, _ = np.diag(canvas.affine)[:3]
    sigma = (build.kernel_mm / dx, build.kernel_mm / dy, 0.25)
    # Noise is strongest where the rays cross most tissue.
    depth = np.exp(-((canvas.world[0] / 150) ** 2) - (canvas.world[1] / 110) ** 2)
    noise = (
        rng.standard_normal(canvas.values.shape, dtype=np.float32) * np.float32(build.noise_hu) * (0.4 + 0.8 * depth)
    )
    values = gaussian_filter(canvas.values + noise, sigma, mode="nearest")
    whole: NDArray[np.int16] = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    return whole
