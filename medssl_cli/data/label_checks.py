"""Whether label maps and the classes of a recipe go together, said before a training or an evaluation begins."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from medssl_cli.base.classes import WantedClasses, joined
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.targets import LabelSurvey, class_voxels


def check_labels(
    records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk, *, option: str
) -> None:
    """Refuse label maps and classes that contradict each other now, not after the training, and say what is left out.

    Args:
        records: Labelled.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told which labels are no class, and where names decide.
        option: Where the recipe has the classes.

    Raises:
        UsageError: `E_LABEL_CLASSES`.
    """
    survey = LabelSurvey([record.labels[label_set] for record in records], wanted, option)
    survey.refuse_contradictions()
    for line in survey.notes():
        talk.note(line)


def check_reference(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """The same for the labels that a trained model is scored by: a part of them may lack some of its classes.

    Raises:
        UsageError: `E_LABEL_CLASSES`, two names for one value, two spellings of one name, or no class of the model in
            any label map.
    """
    survey = LabelSurvey([record.labels[label_set] for record in records], wanted)
    survey.refuse_two_names()
    survey.refuse_other_spellings("score it with labels that have its names, ingested under another --label-set")
    survey.refuse_strangers()
    for line in survey.notes():
        talk.note(line)
    say_unseen({"scored": records}, label_set, wanted, talk)


def say_unseen(splits: Mapping[str, Sequence[ItemRecord]], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """Name the classes that no image of a split shows: they cannot be learnt from it, or not be scored on it.

    Args:
        splits: Images by the name of their split.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told.
    """
    for split, records in splits.items():
        unseen = LabelSurvey([record.labels[label_set] for record in records], wanted).unseen()
        if unseen:
            classes = joined([repr(name) for name in unseen])
            talk.note(f"W_CLASS_ABSENT: no voxel of {classes} in the {len(records)} {split} images")


def say_amounts(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """Say of each class how many patients and voxels there are to learn from.

    Args:
        records: Records of the training.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told.
    """
    patients: dict[int, set[str]] = defaultdict(set)
    voxels: Counter[int] = Counter()
    for record in records:
        for place, number in class_voxels(record.labels[label_set], wanted).items():
            patients[place].add(record.patient_key)
            voxels[place] += number
    amounts = [
        f"{name} {voxels[place]} voxels in {len(patients[place])} patients" for place, name in wanted.names.items()
    ]
    talk.note(f"to learn from: {joined(amounts, 20)}")
