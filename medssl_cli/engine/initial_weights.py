"""What follows from the weights that a fine-tuning begins with: their network, and whom they have seen."""

from medssl_cli.base.classes import joined
from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.talk import Talk
from medssl_cli.cache.splits import Split
from medssl_cli.engine.weights import Encoder
from medssl_cli.formats.name_words import same_channel
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import Named, TaskRecipe, flow_yaml


def with_network_of(encoder: Encoder | None, recipe: TaskRecipe, talk: Talk) -> TaskRecipe:
    """The recipe with the backbone that pre-trained weights bring with them."""
    backbone = recipe.backbone if encoder is None else encoder.backbone_for(recipe.backbone)
    if backbone == recipe.backbone:
        return recipe
    talk.note(_unfair(recipe.backbone, backbone))
    return recipe.model_copy(update={"backbone": backbone})


def check_channels(encoder: Encoder, preprocessing: Preprocessing, talk: Talk) -> None:
    """Refuse weights that have learnt the same channels in another order, and say which others they have learnt.

    Weights for images without names are taken for any channel: they may have seen it. Another number of channels is
    refused where shapes are compared.

    Args:
        encoder: The weights.
        preprocessing: Preprocessing of the recipe.
        talk: Told of other channels.

    Raises:
        UsageError: `E_WEIGHTS_MISMATCH`.
    """
    learnt, wanted = (tuple(map(same_channel, names)) for names in (encoder.channels, preprocessing.channel_names))
    if not learnt or not wanted or learnt == wanted or len(learnt) != len(wanted):
        return
    if set(learnt) == set(wanted):
        raise UsageError(
            "E_WEIGHTS_MISMATCH",
            f"the weights have learnt the channels {joined(learnt)}, the recipe names them {joined(wanted)}",
            hint="list data.channels in the order of the weights",
        )
    talk.note(
        f"W_INIT_CHANNELS: the weights have learnt the channels {joined(learnt)}, the recipe gives them "
        f"{joined(wanted)}"
    )


def patients_seen(split: Split, encoder: Encoder | None, talk: Talk) -> dict[str, int | None]:
    """What a run's manifest should remember of the patients that initial weights have seen.

    Args:
        split: Who trains, validates and tests.
        encoder: The weights, or None.
        talk: Told what makes results look better than they are.

    Raises:
        GateError: `E_SPLIT_LEAK`, they have learnt from labels of test patients.
    """
    num_labelled = _validation_labels_seen(split, encoder, talk)
    num_seen = _test_patients_seen(split, encoder)
    if num_seen is None:
        talk.note(
            "W_WEIGHTS_ORIGIN: it is not known whose images the weights have seen; test patients may be among them"
        )
    elif num_seen:
        talk.note(f"W_SPLIT_LEAK: pre-training has seen images (not labels) of {num_seen} test patients")
    found: dict[str, int | None] = {"test_patients_seen_in_pretraining": num_seen}
    return found | ({"validation_patients_labelled_in_pretraining": num_labelled} if num_labelled else {})


def _unfair(own: Named, other: Named) -> str:
    """That weights brought their own network with them, and how to train the same one from scratch."""
    return (
        f"W_BACKBONE_REPLACED: backbone {other.name} of --init replaces the recipe's {own.name}; to compare with a "
        f"training from scratch, give it the same network: --set 'backbone={flow_yaml(other.model_dump())}'"
    )


def _validation_labels_seen(split: Split, encoder: Encoder | None, talk: Talk) -> int:
    """Number of validation patients whose labels pre-training has seen: it knows the test patients, but not the fold.

    Raises:
        GateError: `E_SPLIT_LEAK`, it has seen labels of test patients.
    """
    known = frozenset() if encoder is None else encoder.labelled_patients
    test, val = (known & {record.patient_key for record in records} for records in (split.test, split.val))
    if test:
        raise GateError(
            "E_SPLIT_LEAK",
            f"pre-training has learnt from labels of {len(test)} test patients",
            hint="pre-train again on this cache with the split_seed of this recipe: test patients are left out then",
        )
    if val:
        talk.note(f"W_LABELS_SEEN: pre-training has learnt from labels of {len(val)} of the patients to validate on")
    return len(val)


def _test_patients_seen(split: Split, encoder: Encoder | None) -> int | None:
    """Labels may have come after pre-training, so that it could not know whom to leave out. None if nobody knows."""
    if encoder is None:
        return 0
    test = {record.patient_key for record in split.test}
    return None if encoder.patients is None else len(test & encoder.patients)
