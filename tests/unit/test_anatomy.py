"""The phantom is a chest: everything on its proper side, at its proper density, soft at its edges."""

import numpy as np
import pytest

from medssl_cli.demo.anatomy import STRUCTURES, Phantom, thorax
from medssl_cli.demo.canvas import DemoCanvas, Frame, cone, ellipsoid

SHAPE, SPACING = (80, 80, 40), (4.4, 4.4, 4.0)
LEFT_VENTRICLE, RIGHT_VENTRICLE, LEFT_ATRIUM, RIGHT_ATRIUM, MYOCARDIUM, AORTA, PULMONARY = STRUCTURES


@pytest.fixture(scope="module", params=range(3))
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return thorax(np.random.default_rng(request.param), shape=SHAPE, spacing_mm=SPACING)


def centre_mm(phantom: Phantom, label: int) -> np.ndarray:
    """Centre of mass of a structure, RAS+ millimetres."""
    index = np.argwhere(phantom.labels == label).mean(axis=0)
    return (phantom.affine @ (*index, 1))[:3]


def test_every_structure_is_there_and_of_a_human_size(phantom):
    voxel_ml = np.prod(SPACING) / 1000
    volumes = np.bincount(phantom.labels.ravel(), minlength=8)[1:] * voxel_ml

    assert (volumes > 15).all()
    assert (volumes < 400).all()


def test_apex_points_to_the_patients_left_front_and_down(phantom):
    base_to_apex = centre_mm(phantom, MYOCARDIUM) - centre_mm(phantom, LEFT_ATRIUM)

    assert base_to_apex[0] < 0  # RAS+: left is negative
    assert base_to_apex[1] > 0
    assert base_to_apex[2] < 0


def test_right_heart_lies_right_and_in_front_of_the_left(phantom):
    assert centre_mm(phantom, RIGHT_ATRIUM)[0] > centre_mm(phantom, LEFT_ATRIUM)[0]
    assert centre_mm(phantom, RIGHT_VENTRICLE)[0] > centre_mm(phantom, LEFT_VENTRICLE)[0]
    assert centre_mm(phantom, RIGHT_VENTRICLE)[1] > centre_mm(phantom, LEFT_VENTRICLE)[1]


def test_great_vessels_rise_above_the_ventricles_with_the_aorta_on_the_right(phantom):
    aorta, pulmonary = centre_mm(phantom, AORTA), centre_mm(phantom, PULMONARY)

    assert min(aorta[2], pulmonary[2]) > centre_mm(phantom, LEFT_VENTRICLE)[2]
    assert aorta[0] > pulmonary[0]


def test_liver_is_on_the_right_and_stands_higher_than_the_left_diaphragm(phantom):
    low, middle = phantom.hu[:, 30:50, :6], SHAPE[0] // 2
    is_soft = (low > 0) & (low < 200)

    assert is_soft[middle + 8 : -15].mean() > is_soft[15 : middle - 8].mean()


def test_tissue_has_its_hounsfield_units(phantom):
    assert np.median(phantom.hu[:4]) < -900  # air beside the body
    lung = phantom.hu[(phantom.hu > -950) & (phantom.hu < -700)]
    assert lung.size > 0.1 * phantom.hu.size  # two inflated lungs in a field of view of about 350 mm
    assert phantom.hu.max() > 350  # bone
    assert phantom.hu.min() >= -1024


def test_ventricle_is_filled_and_its_wall_is_muscle():
    phantom = thorax(np.random.default_rng(0), shape=SHAPE, spacing_mm=SPACING)
    wall, blood = (np.median(phantom.hu[phantom.labels == label]) for label in (MYOCARDIUM, LEFT_VENTRICLE))

    assert 30 < wall < 140
    assert 30 < blood < 450


def test_same_seed_same_patient_other_seed_another():
    first, again, other = (
        thorax(np.random.default_rng(seed), shape=(40, 40, 20), spacing_mm=(8.8, 8.8, 8)) for seed in (5, 5, 6)
    )

    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.hu != other.hu).mean() > 0.5


def test_affine_puts_the_middle_voxel_near_the_middle_of_the_scanner(phantom):
    middle = phantom.affine @ (*((np.array(SHAPE) - 1) / 2), 1)

    np.testing.assert_allclose(middle, (0, 0, 4, 1), atol=1e-9)
    np.testing.assert_array_equal(np.diag(phantom.affine)[:3], SPACING)


def one_millimetre_canvas(size: int) -> DemoCanvas:
    affine = np.eye(4)
    affine[:3, 3] = -(size - 1) / 2
    return DemoCanvas((size, size, size), affine, background=0)


def test_partial_volume_keeps_the_volume_of_a_ball():
    canvas, ball = one_millimetre_canvas(30), ellipsoid((0.3, -0.2, 0.1), (10, 10, 10))
    canvas.fill(ball.distance(*canvas.world), 1.0, label=1)

    exact = 4 / 3 * np.pi * 10**3
    assert canvas.values.sum() == pytest.approx(exact, rel=0.01)
    assert (canvas.labels == 1).sum() == pytest.approx(exact, rel=0.02)
    assert ((canvas.values > 0.05) & (canvas.values < 0.95)).any()


def test_distances_of_a_sphere_and_of_a_tube_are_exact():
    x, y, z = (np.array(values, dtype=np.float32) for values in ([13.0, 0.0], [0.0, 4.0], [0.0, 2.0]))

    # Sphere of radius 10 around 0, along x: 13 - 10. Tube of radius 1.5 along z from 0 to 5, beside it: 4 - 1.5.
    assert ellipsoid((0, 0, 0), (10, 10, 10)).distance(x, y, z)[0] == pytest.approx(3, abs=1e-4)
    assert cone((0, 0, 0), (0, 0, 5), 1.5, 1.5).distance(x, y, z)[1] == pytest.approx(2.5, abs=1e-4)


def test_box_holds_the_whole_solid_of_a_turned_frame():
    canvas = one_millimetre_canvas(60)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    frame, solid = Frame(turn, np.array([3.0, -2, 1])), ellipsoid((4, 0, 0), (9, 4, 3))
    coordinates = canvas.coordinates(frame, lambda x, y, z: np.zeros((3, *x.shape), dtype=np.float32))

    inside = solid.distance(*coordinates) < 0
    assert inside.any()
    assert inside.sum() == inside[canvas.box(solid, frame)].sum()
