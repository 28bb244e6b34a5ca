"""The base of everything that is written down and read back: recipes, options, records."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percentage = Annotated[float, Field(ge=0, le=100)]
Size = tuple[PositiveInt, PositiveInt, PositiveInt]
Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Share = Annotated[float, Field(gt=0, le=1)]


def _least_first(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("must be (least, largest)")
    return ends


PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_least_first)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_least_first)]


class Strict(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
