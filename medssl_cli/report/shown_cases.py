"""The worst, the median and the best images of an evaluation on its page: slice by slice, and as pictures."""

from collections.abc import Mapping, Sequence

from medssl_cli.report.gallery import Shown
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.pictures import with_few_colours
from medssl_cli.report.viewer import Scene, Shows


def add_shown_cases(
    page: Page,
    pictures: Sequence[Shown],
    *,
    figure: str,
    alt: str,
    note: str = "",
    classes: Mapping[int, str],
    shows: Shows = "both",
) -> None:
    """Add a section with the images that an evaluation has kept; nothing if it has kept none.

    Args:
        page: The page.
        pictures: The images, worst first.
        figure: Title of the figure that ranks them.
        alt: What pictures show, for those who do not see them.
        note: What is to be said about figure and pictures.
        classes: Names by label value, or of boxes by the number that chooses their colour.
        shows: What lies over the images in the viewer.
    """
    if not pictures:
        return
    page.heading("Worst, median and best")
    scenes = [
        (f"{shown.place}: {shown.item_id[:8]}, {figure} {shown.figure:.3f}", shown.scene)
        for shown in pictures
        if shown.scene is not None
    ]
    if scenes:
        page.viewer(scenes, classes, shows=shows)
        page.paragraph(_how_to(scenes, shows))
    if note:
        page.paragraph(note)
    page.figures(
        [
            Figure(
                with_few_colours(shown.picture),
                f"{alt} {shown.item_id}",
                f"{shown.place}: `{shown.item_id[:8]}` {figure} {shown.figure:.3f}",
            )
            for shown in pictures
        ],
        columns=1,
    )


def _how_to(scenes: Sequence[tuple[str, Scene]], shows: Shows) -> str:
    """How the viewer is used."""
    are_whole = shows == "nothing" or all(scene.is_picture for _, scene in scenes)
    around = "Images are shown whole" if are_whole else "Images are shown around what is on them"
    thinned = "; of large ones not every voxel" if any(max(scene.strides) > 1 for _, scene in scenes) else ""
    planes = ""
    if not all(scene.is_picture for _, scene in scenes):
        planes = (
            "Click into a plane to move the others. With a plane in focus the wheel and the arrow keys go through its "
            "slices. "
        )
    keys = "`n` and `p` go to the next and the previous image"
    if shows != "nothing":
        keys = f"`o` changes what is drawn over an image, {keys}"
    if any(scene.boxes for _, scene in scenes):
        keys = f"`b` goes to the next box, {keys}"
    return f"{around}{thinned}. {planes}Keys: {keys}."
