"""What happens to images before a network sees them, as plain data; `imaging.preprocessing` does it."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import Percentage, PositiveInt, Size, Strict, Triple

WRITTEN_IF_GIVEN: Final = ("stretch", "foreground_above", "mixture")
ChannelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class IntensityRule(Strict):
    """What becomes of the values of one channel.

    Args:
        window_hu: Values (low, high) that become 0 and 1, clipped outside; for CT.
        zscore: Subtract the mean and divide by the standard deviation of the non-zero voxels of the volume.
        percentiles: Shares in percent (low, high): of the non-zero voxels, the values at them become 0 and 1, clipped
            outside.
    """

    window_hu: tuple[FiniteFloat, FiniteFloat] | None = None
    zscore: bool = False
    percentiles: tuple[Percentage, Percentage] | None = None

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        for name, range_ in (("window_hu", self.window_hu), ("percentiles", self.percentiles)):
            if range_ is not None and range_[0] >= range_[1]:
                raise ValueError(f"{name} must be (low, high) with low < high")
        return self

    @property
    def num_rules(self) -> int:
        """How many of the three are given."""
        return (self.window_hu is not None) + self.zscore + (self.percentiles is not None)


class Channel(IntensityRule):
    """One image among those of an example, and the rule for its values.

    Args:
        name: What images of this channel are called, such as `flair`.
    """

    name: ChannelName

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.num_rules != 1:
            raise ValueError("give exactly one of window_hu, zscore: true and percentiles")
        return self


class Preprocessing(IntensityRule):
    """What happens to an example before a network sees it; the same object trains, exports and infers.

    Args:
        spacing_mm: Voxel size to resample to; `None` keeps each image's own.
        fit: Size (x, y) or (x, y, z) in voxels that each image is brought to, with its proportions in millimetres kept
            and its lowest value around it; of (x, y) the slices stay as many. Not together with `spacing_mm`.
        stretch: Size (x, y, z) in voxels that each image is brought to, whatever its proportions (published VoCo). Not
            together with `spacing_mm` and `fit`; written only where it is given.
        foreground_crop: Cut away what lies outside of the box around all voxels above the lowest value of their image.
        foreground_above: Value that counts as the lowest there, such as -175 for what is more than air; written only
            where it is given.
        channels: Images of an example in the network's order, each with a name and a rule of its own,
            `{name: flair, zscore: true}`; `None` for one without a name, whose rule is given here.
    """

    orientation: Literal["RAS"] = "RAS"
    spacing_mm: Triple | None = None
    fit: tuple[PositiveInt, PositiveInt] | Size | None = None
    stretch: Size | None = None
    foreground_crop: bool = False
    foreground_above: FiniteFloat | None = None
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_geometry_and_one_rule(self) -> Self:
        if self.num_rules != (self.channels is None):
            raise ValueError(
                "give exactly one of window_hu and zscore: true, or percentiles, or channels with one of them each"
            )
        if sum(geometry is not None for geometry in (self.spacing_mm, self.fit, self.stretch)) > 1:
            raise ValueError("give at most one of spacing_mm, fit and stretch")
        if self.foreground_above is not None and not self.foreground_crop:
            raise ValueError("foreground_above does nothing without foreground_crop: true")
        names = [channel.name for channel in self.channels or ()]
        if len(set(names)) < len(names):
            raise ValueError("channels must have different names")
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that were added later are written only where they are given, so that digests stay."""
        document: dict[str, Any] = default(self)
        return {name: value for name, value in document.items() if value is not None or name not in WRITTEN_IF_GIVEN}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels in their order; none of a single one without a name."""
        return tuple(channel.name for channel in self.channels or ())

    @property
    def rules(self) -> tuple[IntensityRule, ...]:
        """The rule of each channel."""
        return self.channels or (self,)

    @property
    def preprocessing(self) -> "Preprocessing":
        """The part of a recipe's section that a model carries with it."""
        return Preprocessing(**{name: getattr(self, name) for name in Preprocessing.model_fields})

    def fitted(self, size: tuple[int, ...]) -> "Preprocessing":
        """The same for a network that sees images whole: each is fitted to a size (x, y) or (x, y, z).

        Raises:
            UsageError: `E_RECIPE`, the recipe asks for another geometry.
        """
        other = [name for name in ("spacing_mm", "stretch") if getattr(self, name) is not None]
        wanted = "fit" if not other else other[0]
        if other or self.fit not in (None, size):
            raise UsageError(
                "E_RECIPE",
                f"data.{wanted} does not go with whole images: they are fitted to data.crop_size",
                hint=f"leave data.{wanted} out",
            )
        return self.preprocessing.model_copy(update={"fit": size})
