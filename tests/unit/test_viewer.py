"""The slice viewer: what lies in the page, and what Chromium makes of it, by pixels."""

import html
import json
import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.report import structure_colours
from medssl_cli.report.boxes import ShownBox
from medssl_cli.report.page import POLICY, Page
from medssl_cli.report.viewer import MAX_BYTES, Scene, scene_of, script, script_digest

NASTY = "</script><script>alert(\"1\")</script> & 'x'"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTH, HEIGHT = 1000, 800
DARK = (13, 17, 23)
"""Ground of the planes, in both themes."""


def image_of(voxels: NDArray[np.float32], affine: NDArray[np.float64] | None = None, units: str = "a.u.") -> Volume:
    return Volume(voxels[np.newaxis], np.eye(4) if affine is None else affine, "MR", units)


def layers_of(scene: Scene) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(scene.packed), dtype=np.uint8).reshape(3, *scene.shape)


def halves() -> Scene:
    """A grey cube; the model marks the patient's left half, the reference the upper half."""
    voxels = np.full((30, 30, 30), 100, dtype=np.float32)
    voxels[0, 0, 0], voxels[-1, -1, -1] = 0, 200
    prediction, reference = np.zeros((2, 30, 30, 30), dtype=np.uint8)
    prediction[:14], reference[:, :, 15:] = 1, 2
    return scene_of(image_of(voxels), prediction, reference, window=(0, 200), margin_mm=99)


def test_a_scene_holds_the_image_and_both_label_maps_in_ras_order():
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 256, (6, 5, 4)).astype(np.float32)
    voxels[0, 0, :2] = 0, 255
    prediction, reference = rng.integers(0, 3, (2, 6, 5, 4)).astype(np.uint8)

    scene = scene_of(image_of(voxels, LPS), prediction, reference, window=(0, 255), margin_mm=99)

    assert scene.shape == (6, 5, 4)
    assert scene.strides == (1, 1, 1)
    assert scene.range == (0, 255)
    for shown, given in zip(layers_of(scene), (voxels, reference, prediction), strict=True):
        np.testing.assert_array_equal(shown, given[::-1, ::-1])


def test_a_scene_is_cut_around_its_structures_and_starts_where_most_of_them_is():
    reference = np.zeros((40, 40, 40), dtype=np.uint8)
    reference[10:20, 10:20, 10:20] = 7
    reference[18, 10:22, 10:20] = 7

    scene = scene_of(image_of(np.zeros((40, 40, 40), np.float32)), 0 * reference, reference, margin_mm=3)

    assert scene.shape == (16, 18, 16)
    assert scene.start[0] == 18 - 7
    assert scene.values == (0, 7)


@pytest.mark.parametrize("shape", [(220, 200, 90), (900, 800, 1), (1, 300_000, 3)])
def test_large_images_are_thinned_until_they_fit(shape):
    rng = np.random.default_rng(1)
    voxels = rng.normal(size=shape).astype(np.float32)
    mask = np.ones(shape, dtype=np.uint8)

    scene = scene_of(image_of(voxels), mask, mask, margin_mm=0)

    assert MAX_BYTES / 8 < len(scene.packed) <= MAX_BYTES
    assert scene.shape == tuple(-(-size // stride) for size, stride in zip(shape, scene.strides, strict=True))
    assert scene.spacing_mm == scene.strides
    assert (layers_of(scene)[1:] == 1).all()


def test_values_that_are_not_finite_and_images_of_one_value_are_shown():
    for value in (np.nan, np.inf, 3.0):
        scene = scene_of(
            image_of(np.full((4, 4, 4), value, np.float32)), *np.zeros((2, 4, 4, 4), np.uint8), margin_mm=1
        )
        assert scene.range[0] < scene.range[1]
        assert np.isfinite(scene.range).all()
        Page("t").viewer([("one", scene)], {}).render()


def test_names_are_escaped_and_only_the_viewer_may_run():
    page = Page("t").viewer([(NASTY, halves())], {1: NASTY}).render()

    assert re.findall(r"<script>(.*?)</script>", page, re.S) == [script()]
    assert f"{POLICY}; script-src &#x27;sha256-{script_digest()}&#x27;" in page.replace("'", "&#x27;").replace(
        POLICY.replace("'", "&#x27;"), POLICY
    )
    (scene,) = re.findall(r'data-scene="([^"]*)"', page)
    document = json.loads(html.unescape(scene))
    assert document["images"][0]["title"] == document["classes"][0]["name"] == NASTY
    assert "innerHTML" not in script()
    assert "</" not in script()
    assert "http" not in script()


def test_a_page_without_a_viewer_runs_nothing():
    page = Page("t").paragraph("text").render()

    assert f'content="{POLICY}"' in page
    assert "<script" not in page


def test_twenty_images_stay_below_five_megabytes():
    rng = np.random.default_rng(2)
    shape = (120, 120, 60)
    mask = np.ones(shape, dtype=np.uint8)
    scene = scene_of(image_of(rng.normal(size=shape).astype(np.float32)), mask, mask, margin_mm=0)

    assert len(Page("t").viewer([("one", scene)] * 20, {}).render()) < 3_600_000


def test_a_picture_is_seen_as_it_is_stored():
    voxels = np.arange(12, dtype=np.float32).reshape(4, 3, 1)

    scene = scene_of(image_of(voxels, np.diag([0.5, 0.5, 1.0, 1.0])), window=(0, 255), margin_mm=None)

    assert scene.is_picture
    np.testing.assert_array_equal(layers_of(scene)[0], voxels[::-1, ::-1])  # the viewer turns both axes


def test_boxes_of_a_thinned_image_keep_their_middles():
    """Of every second voxel the n-th is voxel 2 n: what lay in the middle of that one still does."""
    voxels = np.random.default_rng(3).normal(size=(40, 40, 40)).astype(np.float32)
    boxes = [ShownBox("a", (8.0, 8.0, 8.0, 9.0, 9.0, 9.0)), ShownBox("a", (0.0, 0.0, 0.0, 40.0, 40.0, 40.0), 0.5)]

    scene = scene_of(image_of(voxels), boxes=boxes, margin_mm=None, max_bytes=8000)

    middles = [(np.array(box.low) + box.high) / 2 for box in scene.boxes]
    assert min(scene.strides) > 1
    for middle, stride in zip(middles[0], scene.strides, strict=True):
        assert middle == pytest.approx(8 / stride + 0.5)
    assert [box.is_reference for box in scene.boxes] == [True, False]
    assert [box.text for box in scene.boxes] == ["a", "a 0.50"]


def screenshot(folder: Path, page: str) -> NDArray[np.int64]:
    """A page as Chromium shows it, opened from a file, without a network: `[rows, columns, 3]`."""
    if CHROMIUM is None:
        assert "CI" not in os.environ, "chromium is not installed"
        pytest.skip("chromium is not installed")
    (folder / "page.html").write_text(page, encoding="utf-8")
    for budget_ms in (8_000, 30_000, 90_000):  # of virtual time; a slow machine may not have drawn by the first
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--force-color-profile=srgb", "--force-device-scale-factor=1",
                   "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
                   f"--virtual-time-budget={budget_ms}", f"--window-size={WIDTH},{HEIGHT}",
                   f"--screenshot={folder / 'page.png'}", (folder / "page.html").as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(folder / "page.png") as picture:
            seen = np.asarray(picture.convert("RGB"), dtype=np.int64)
        if count(seen, (GREY, GREY, GREY)) > 10_000:
            break
    return seen


def after(page: str, actions: str) -> str:
    """A page that does something to its viewer as soon as it shows an image, without the policy that forbids it."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    run = f"""<script>
const root = document.querySelector(".viewer");
const act = () => {{ {actions} }};
const watch = new MutationObserver(() => {{ watch.disconnect(); act(); }});
if (root.dataset.ready === undefined) watch.observe(root, {{ attributes: true, attributeFilter: ["data-ready"] }});
else act();
</script>"""
    return page.replace("</body>", run + "</body>")


def count(picture: NDArray[np.int64], colour: tuple[float, ...], tolerance: int = 3) -> int:
    """Pixels of a colour."""
    return int((np.abs(picture - np.array(colour)).max(axis=2) <= tolerance).sum())


def blend(grey: float, colour: tuple[int, int, int], share: float) -> tuple[float, ...]:
    return tuple(grey * (1 - share) + own * share for own in colour)


GREY = 127.5
COLOURS = structure_colours((1, 2))


@pytest.mark.slow
def test_chromium_shows_the_planes_with_the_model_filled_and_the_reference_outlined(tmp_path):
    picture = screenshot(tmp_path, Page("t").viewer([("one", halves())], {1: "left", 2: "upper"}).render())

    filled = np.abs(picture - np.array(blend(GREY, COLOURS[1], 0.4))).max(axis=2) <= 3
    plain = np.abs(picture - GREY).max(axis=2) <= 3
    assert filled.sum() > 40_000
    assert plain.sum() > 40_000
    assert count(picture, COLOURS[2]) > 1000  # outline of the reference, and its square in the legend
    assert count(picture, blend(GREY, COLOURS[2], 0.4)) < 100  # it is not filled
    assert count(picture, DARK) > 5000
    rows, columns = np.nonzero(filled | plain)
    axial = columns < columns.min() + (columns.max() - columns.min()) / 3.1
    low_x = filled[rows[axial], columns[axial]]
    assert columns[axial][low_x].mean() > columns[axial][~low_x].mean() + 50  # the patient's left is on the right


@pytest.mark.slow
def test_chromium_obeys_keys_sliders_and_boxes(tmp_path):
    second = halves()
    page = Page("t").viewer([("one", halves()), ("two", second)], {1: "left", 2: "upper"}).render()
    steps = """
const canvas = root.querySelectorAll("canvas")[2];
for (let n = 0; n < 30; n++) canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
root.querySelectorAll(".legend input")[1].click();
const opacity = root.querySelectorAll(".controls input")[0];
opacity.value = 100;
opacity.dispatchEvent(new Event("input"));
"""
    picture = screenshot(tmp_path, after(page, steps))

    full, outlined = count(picture, COLOURS[1]), count(picture, COLOURS[2])
    assert full > 40_000  # half of the axial and of the coronal plane; the sagittal one now lies in the other half
    assert outlined < 1000  # of the reference nothing but its square in the legend


@pytest.mark.slow
def test_chromium_draws_boxes_where_they_are_on_the_slices_that_they_cross(tmp_path):
    """Two boxes of one size: found ones are drawn whole, one that is there in dashes; a third lies on other slices."""
    voxels = np.full((30, 30, 30), 100, dtype=np.float32)
    voxels[0, 0, 0], voxels[-1, -1, -1] = 0, 200
    boxes = [
        ShownBox("found", (5.0, 10.0, 0.0, 10.0, 20.0, 30.0), 0.9),
        ShownBox("there", (18.0, 10.0, 0.0, 23.0, 20.0, 30.0)),
        ShownBox("away", (5.0, 10.0, 2.0, 10.0, 20.0, 5.0), 0.8),
    ]
    scene = scene_of(image_of(voxels), boxes=boxes, window=(0, 200), margin_mm=None)
    classes = {1: "found", 2: "there", 3: "away"}

    picture = screenshot(tmp_path, Page("t").viewer([("one", scene)], classes).render())

    grey = np.abs(picture - GREY).max(axis=2) <= 3
    columns = np.flatnonzero(grey.sum(axis=0) > 50)
    axial = picture[:, columns[0] - 3 : columns[0] + 3 + (columns[-1] - columns[0]) // 3]
    rows = np.flatnonzero((np.abs(axial - GREY).max(axis=2) <= 3).sum(axis=1) > 100)
    axial = axial[rows[0] : rows[-1] + 1]
    size = len(axial)
    colours = structure_colours((1, 2, 3))
    found, there = (np.abs(axial - np.array(colours[value])).max(axis=2) <= 3 for value in (1, 2))
    # x = 5 to 10 of 30 in a picture whose left is high x; lines are 2 pixels wide.
    sides = np.flatnonzero(found.sum(axis=0) > size / 4)
    assert np.array([sides.min() - 3, sides.max() - 3]) / size == pytest.approx([1 - 10 / 30, 1 - 5 / 30], abs=0.02)
    assert found[:, sides.min()].sum() == pytest.approx(size / 3, abs=6)
    dashed = there.sum(axis=0).max()
    assert size / 3 * 0.4 < dashed < size / 3 * 0.8
    assert count(axial, colours[3]) == 0  # it is not on this slice
