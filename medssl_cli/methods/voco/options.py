"""VoCo's settings: what each objective has, where `fixed` departs from the released code, and what labels add."""

from math import prod
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from medssl_cli.base.classes import Classes, Ignored, WantedClasses, refuse_overlap
from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Strict
from medssl_cli.imaging.geometry import Shape
from medssl_cli.methods.voco.terms import Regulariser
from medssl_cli.nn.decoder import Decoder, DecodingOptions

# What an objective has, and its value. A name that is missing keeps the default; see `OBJECTIVE_ONLY`.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "paper": {},
    "v1": {"projector_dim": 2048, "shift_prob": 0.1, "sync_norm": True, "momentum": 0.9},
    "v2": {"momentum": 0.9, "dropout_prob": 0.2},
    "fixed": {"sync_norm": True, "momentum": 0.9, "dropout_prob": 0.2, "corrections": {}},
}
OBJECTIVE_ONLY: Final = ("momentum", "dropout_prob", "corrections")


class Corrections(Strict):
    """What `fixed` does otherwise than the released code of `v2`; each can be set back to it on its own.

    Args:
        negative_slope: Share of its gradient that a cosine below 0 gets where the crops overlap. Published: 0.
        dropout: What is dropped of the student's embeddings: single `elements`. Published: whole `rows`.
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


class OmniOptions(Strict):
    """What is labelled, and how much each kind of supervision counts.

    Args:
        label_set: Name of the label maps in the cache.
        classes: Classes by name: the names or values of labels that make up each, as `task.classes` of a segmentation.
        ignore: Names or values of voxels that count for nothing.
        batch_size: Labelled crops per batch on all devices together.
        foreground_prob: Share of labelled crops that show a random voxel of a random class.
        flip_prob: Probability of a flip of labelled crops, per axis. A mirrored left kidney looks like a right one: 0
            if classes have sides.
        self_weight: Weight of the self-supervised loss; 0 leaves it out.
        supervised_weight: Weight of cross-entropy plus Dice on labelled crops.
        pseudo_weight: Weight of cross-entropy plus Dice on pseudo-labelled crops; 0 leaves them out.
        pseudo_from: Share of the steps before the model's copy is frozen and begins to label.
        pseudo_trains_encoder: Let pseudo-labels train the encoder too, not only the decoder.
        decoder: Shape of the decoder.
    """

    label_set: str = "seg"
    classes: Classes
    ignore: Ignored = ()
    batch_size: PositiveInt = 4
    foreground_prob: Probability = 0.9
    flip_prob: Probability = 0.2
    self_weight: NonNegativeFloat = 1.0
    supervised_weight: PositiveFloat = 1.0
    pseudo_weight: NonNegativeFloat = 1.0
    pseudo_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pseudo_trains_encoder: bool = False
    decoder: Decoder = Decoder()

    @model_validator(mode="after")
    def _once(self) -> Self:
        """Classes must not contradict each other, nor overlap."""
        WantedClasses.of(self)
        refuse_overlap(self.classes)
        return self

    @property
    def wanted(self) -> WantedClasses:
        """Which labels make up which class."""
        return WantedClasses.of(self)

    @property
    def needs_unlabelled(self) -> bool:
        """Whether anything is learnt from images without their labels."""
        return self.self_weight > 0 or self.pseudo_weight > 0


class DenseOptions(DecodingOptions):
    """VoCo's question asked of every voxel of the random crops, with a decoder. Ours.

    Args:
        target: `coordinates` of the voxel within the box; or `overlap`, how much of a crop about the voxel would lie in
            each of the base crops.
        weight: Weight of the term.
        decoder: Shape of the decoder.
        keep_decoder: Keep the decoder beside the encoder, for tasks whose decoder has the same shape.
    """

    target: Literal["coordinates", "overlap"] = "coordinates"
    weight: PositiveFloat = 1.0


class Options(Strict):
    """Settings of VoCo. Where the released codes differ, a setting that is absent or null has the objective's value.

    Args:
        objective: `v2` (momentum teacher, between-volume term), `fixed` (`v2` corrected), `v1` (teacher encoder, no
            between-volume term) or `paper` (CVPR 2024, one network).
        base_grid: Base crops along x, y, z. A step reads boxes of this many crops.
        num_random_crops: Number of random crops per volume. More cost little, since base crops are embedded once for
            all.
        network_size: Voxels (x, y, z) that crops are resized to; [64, 64, 64] from 96 in `v1`. Null: no resizing.
        resize: What is resized with `network_size`: the `canvas` once, or each of the `crops` after cutting, as
            published.
        projector_dim: Width of the projector and its output; 2048 in `v1`.
        sync_norm: Normalise projections over the crops of all processes; true in `v1` and `fixed`.
        momentum: Momentum of the teacher (`v1`, `v2`, `fixed`).
        dropout_prob: Share of the student's crops whose embedding is replaced by zeros (`v2`; see above for its price),
            or of elements of embeddings (`fixed`).
        corrections: See `Corrections` (`fixed`).
        flip_prob: Probability of a flip, per crop and axis.
        rot90_prob: Probability of a quarter-turn per crop, in the x-y plane; crops with unequal x and y are never
            turned.
        shift_prob: Probability of a shift of intensities, per crop; 0.1 in `v1`.
        shift: Largest intensity shift, on images scaled to 0...1.
        dense: The question asked of every voxel too; null leaves it out, as published.
        omni: What labels add, where the cache has some.
    """

    objective: Literal["paper", "v1", "v2", "fixed"] = "v2"
    base_grid: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 3, 1)
    num_random_crops: PositiveInt = 2
    network_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    resize: Literal["canvas", "crops"] | None = None
    projector_dim: PositiveInt = 1024
    sync_norm: bool = False
    momentum: Probability | None = None
    dropout_prob: Annotated[float, Field(ge=0, lt=1)] | None = None
    corrections: Corrections | None = None
    flip_prob: Probability = 0.2
    rot90_prob: Probability = 0.2
    shift_prob: Probability = 0.5
    shift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    dense: DenseOptions | None = None
    omni: OmniOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_objective(cls, given: Any) -> Any:
        """Give options that are absent or null the objective's values."""
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(str(given.get("objective", "v2")), {})
        return {**given, **{name: value for name, value in preset.items() if given.get(name) is None}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse options that the objective does not have, or that contradict each other."""
        for name in OBJECTIVE_ONLY:
            if getattr(self, name) is not None and name not in PRESETS[self.objective]:
                owners = ", ".join(objective for objective, preset in PRESETS.items() if name in preset)
                raise ValueError(f"{name} belongs to {owners}; objective {self.objective} has none (null removes it)")
        if self.resize is not None and self.network_size is None:
            raise ValueError("resize does nothing without network_size")
        if prod(self.base_grid) < 2:
            raise ValueError("base_grid needs at least two base crops: with one there is nothing to tell apart")
        if self.dense is not None and self.omni is not None and self.omni.self_weight == 0:
            raise ValueError("dense is part of the self-supervised loss, which omni.self_weight: 0 leaves out")
        if self.omni is not None and self.network_size is not None:
            raise ValueError("omni does not go with network_size: labelled crops are not resized")
        return self

    @property
    def rules(self) -> Corrections:
        """What to do where the released code is corrected or not."""
        return self.corrections or PUBLISHED

    def require_slices(self, crop_size: Shape) -> None:
        """Refuse what cannot be asked of single slices.

        Raises:
            UsageError: `E_RECIPE`.
        """
        sizes = {"base_grid": self.base_grid, "network_size": self.network_size, "crop_size": crop_size}
        deep = [name for name, size in sizes.items() if size is not None and size[2] > 1]
        if deep:
            raise UsageError(
                "E_RECIPE",
                f"a backbone of two dimensions sees single slices; {' and '.join(deep)} has more than 1 along z",
                hint="for example method.base_grid [3, 3, 1] and data.crop_size [64, 64, 1]",
            )
        if self.omni is not None:
            raise UsageError(
                "E_RECIPE",
                "method.omni needs a backbone of three dimensions",
                hint="leave method.omni out, or set backbone.spatial_dims to 3",
            )
