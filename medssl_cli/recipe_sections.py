"""Sections of a recipe that are a matter of their own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medssl_cli.base.strict import PositiveInt


class UnlabelledImages(BaseModel):
    """How a fine-tuning learns from images without their labels; other keys are the method's own.

    Args:
        method: Its name.
        batch_size: Unlabelled images per step, over all devices; None takes as many as labelled ones.
        momentum: Of the teacher, the running average of the weights; at most t / (t + 20) after t steps.
        keep: Whose weights are validated, kept and exported.
        crops: Of unlabelled volumes: where structures lie in labelled ones, as `foreground_prob` says, or anywhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str
    batch_size: PositiveInt | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    keep: Literal["teacher", "student"] = "teacher"
    crops: Literal["as_labels", "anywhere"] = "as_labels"

    @property
    def options(self) -> dict[str, Any]:
        """What is the method's own."""
        return dict(self.model_extra or {})
