"""Which rule of intensities suits the channels of a set of images."""

import math
from typing import Any, Final

from medssl_cli.plan.draft import RULES, Pins, PlannedValue
from medssl_cli.plan.fingerprint import ChannelValues, Fingerprint

STEP_HU: Final = 5


def rule_values(pins: Pins, fingerprint: Fingerprint) -> dict[str, PlannedValue]:
    """The rule of each channel: a window around what is labelled where values are Hounsfield units, else z-scores.

    Args:
        pins: A rule that is given stays.
        fingerprint: Fingerprint of the images.
    """
    for name in RULES:
        if pins.get(f"data.{name}"):
            return {f"data.{name}": PlannedValue(pins.get(f"data.{name}"), "as given")}
    channels = fingerprint.channels
    if len(channels) == 1 and not channels[0].name:
        (key, value), reason = _rule(channels[0])
        return {f"data.{key}": PlannedValue(value, reason)}
    given = {each["name"]: each for each in pins.get("data.channels", ()) if len(each) > 1}
    listed: list[dict[str, Any]] = [
        given.get(channel.name, {"name": channel.name, **dict([_rule(channel)[0]])}) for channel in channels
    ]
    return {"data.channels": PlannedValue(listed, "the network's inputs in this order, each by its own rule")}


def _rule(channel: ChannelValues) -> tuple[tuple[str, Any], str]:
    found = channel.foreground
    if channel.is_hu:
        low = STEP_HU * math.floor(found.low / STEP_HU)
        high = max(STEP_HU * math.ceil(found.high / STEP_HU), low + STEP_HU)
        what = "labelled voxels" if len(channel.by_class) > 1 else "voxels"
        return ("window_hu", [low, high]), f"99 % of the {what} lie between; what is outside looks the same"
    return ("zscore", True), "values of scanners differ: each image by its own mean and standard deviation"
