"""Where the objective `fixed` departs from the released code of VoCo."""

from typing import Final, Literal

from medssl_cli.nn.overlap_terms import Regulariser
from medssl_cli.recipe import Probability
from medssl_cli.strict import Strict


class Corrections(Strict):
    """What `fixed` does otherwise than the released code of `v2`; each can be set back to it on its own.

    Args:
        negative_slope: Share of its gradient that a cosine below 0 gets where the crops overlap. Published: 0.
        dropout: Of single `elements` of the student's embeddings. Published: of whole `rows`.
        regulariser: `squared` or `absolute` cosines, gradients to both of a pair. Published: `one_sided`.
        inter_volume: `all_pairs` of volumes, over all processes. Published: the `next` volume only.
        teacher_start: As a copy of the `student`. Published: `random`.
        final_momentum: Where the teacher's momentum rises to, along half a cosine. Published: null, it stays.
        float32_loss: Published: false, float64.
        inclusive_offsets: Random crops may start at the last legal voxel too. Published: false.
    """

    negative_slope: Probability = 0.1
    dropout: Literal["elements", "rows"] = "elements"
    regulariser: Regulariser = "squared"
    inter_volume: Literal["all_pairs", "next"] = "all_pairs"
    teacher_start: Literal["student", "random"] = "student"
    final_momentum: Probability | None = 0.996
    float32_loss: bool = True
    inclusive_offsets: bool = True


PUBLISHED: Final = Corrections(
    negative_slope=0.0,
    dropout="rows",
    regulariser="one_sided",
    inter_volume="next",
    teacher_start="random",
    final_momentum=None,
    float32_loss=False,
    inclusive_offsets=False,
)
