"""What a pre-trained encoder knows: its frozen embeddings against labels, beside those of the same network untrained.

The untrained network has the run's own first weights. Probes are fitted on patients who are not tested.

Shapes: N images, E embedding, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.plain_json import without_nan
from medssl_cli.base.plugins import suggest
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.findings import Definition, finding_names, targets_of
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.splits import NUM_FOLDS, probe_patients, same_people, shuffled
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import examples_with
from medssl_cli.data.pieces import piece_loader
from medssl_cli.data.selection import known_of, no_annotations, training_examples
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.weights import initialise, load_encoder
from medssl_cli.metrics.ranking import auroc, finding_estimates, has_patients_enough
from medssl_cli.metrics.statistics import bootstrap_figure
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_backbone
from medssl_cli.nn.probes import linear_scores, neighbour_scores
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import PretrainRecipe

Kind = Literal["linear", "knn"]
ANY: Final = "any"
MODALITY: Final = "modality"
LEVEL: Final = "level"
LEVELS: Final = ("lower third", "middle third", "upper third")
SLICES: Final = 8
SLICES_PER_LEVEL: Final = 3
PIECES: Final = 64
"""Slices that go through the network together, at most; of boxes an eighth."""
BOOTSTRAP_SEED: Final = 0
PRETRAINED: Final = "pretrained"
UNTRAINED: Final = "random"


@dataclass(frozen=True)
class Questions:
    """What is asked about images, or about slices of them.

    Args:
        records: Records of the images, or of the first image of each example with what is known of the others.
        answers: `[N, P, K]`; P is 1, or the number of slices that are asked about by themselves.
        classes: Names, K.
        is_pseudo: The answers need no labels.
    """

    records: Sequence[ItemRecord]
    answers: NDArray[np.float32]
    classes: list[str]
    is_pseudo: bool


def probe_run(
    root: Path, cache: Cache, *, kind: Kind, labels: str, finding: str | None, device: str, talk: Talk
) -> dict[str, Any]:
    """Fit a probe on the embeddings of a pre-training's encoder and score it on patients that it was not fitted on.

    Args:
        root: Run of `medssl pretrain`.
        cache: Holds the images and their labels.
        kind: Logistic regression, or a vote of the nearest neighbours.
        labels: A set of findings, `modality`, or `level`: the third of a volume that a slice comes from.
        finding: One of the set, or `any` of them; None for each by itself.
        device: Where the encoder computes.
        talk: Notes and progress.

    Returns:
        Its document; numbers that do not apply are null.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_USAGE`, `E_DEVICE`.
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
    """
    place = resolve_device(device)
    run = open_run(root)
    if not isinstance(run.recipe, PretrainRecipe):
        raise UsageError("E_NO_RUN", f"{root} is no pre-training run", hint="probes are for runs of medssl pretrain")
    encoder, recipe = load_encoder(root), run.recipe
    networks = {PRETRAINED: _untrained(recipe), UNTRAINED: _untrained(recipe)}
    initialise(networks[PRETRAINED], encoder)
    asked = _questions(cache, recipe, labels, finding, is_flat=networks[PRETRAINED].spatial_dims == 2)
    test = probe_patients(cache.entries(), seed=recipe.split_seed, is_pseudo=asked.is_pseudo)
    seen = len(test & (encoder.patients or frozenset()) & {record.patient_key for record in asked.records})
    if seen:
        talk.note(f"W_SPLIT_LEAK: pre-training has seen images (not labels) of {seen} test patients")
    asked, sides = _sides(asked, test, talk)
    names = recipe.data.channel_names
    items = prepare(
        cache,
        examples_with(cache.entries() if names else [], asked.records, names),
        _preprocessing(recipe),
        progress=lambda done, total: talk.progress("preparing", done, total),
    )
    scores = {}
    for name, network in networks.items():
        embeddings = _embed(network.to(place).eval(), items, recipe, asked, place, name, talk)
        scores[name] = _scores(kind, embeddings.to(place), sides, f"{kind} probe of {name}", talk)
        network.cpu()
    about = {"run": root.name, "probe": kind, "labels": labels, "test_patients_seen_in_pretraining": seen}
    return _document(about, asked.classes, scores, sides)


def _preprocessing(recipe: PretrainRecipe) -> Preprocessing:
    """What the encoder sees of an image: its slices on squares, or boxes of it."""
    data = recipe.data
    return data.fitted(data.crop_size[:2]) if data.crop_size[2] == 1 else data.preprocessing


def _untrained(recipe: PretrainRecipe) -> Backbone:
    """The backbone with the weights that the run began with."""
    with implicit_randomness(recipe.seed, Purpose.INITIALISATION):
        return build_backbone(recipe.backbone, in_channels=len(recipe.data.rules))


def _questions(cache: Cache, recipe: PretrainRecipe, labels: str, finding: str | None, *, is_flat: bool) -> Questions:
    found = _known(cache, recipe, is_flat=is_flat)
    usable = [record for record in found if is_flat or record.is_volume]
    if labels == LEVEL:
        if not is_flat:
            raise UsageError("E_USAGE", "the level of a slice is asked of an encoder of 2D images", hint="try modality")
        usable = [record for record in usable if record.shape[2] >= len(LEVELS) * SLICES_PER_LEVEL]
    if not usable:
        raise NothingUsableError("E_CACHE_EMPTY", f"none of {len(found)} images can be asked for the {labels}")
    if labels in (LEVEL, MODALITY):
        if finding is not None:
            raise UsageError("E_USAGE", f"{labels} has no findings", hint=f"ask for {labels} alone")
        return _levels(usable) if labels == LEVEL else _modalities(usable)
    having = [record for record in usable if labels in record.findings]
    if not having:
        raise no_annotations(
            "findings", labels, {name for record in found for name in record.findings} | {MODALITY, LEVEL}
        )
    names = finding_names(having, labels)
    if finding is not None and finding not in (ANY, *names):
        raise UsageError("E_USAGE", f"the set {labels!r} has no finding {finding!r}", hint=suggest(finding, names))
    wanted = [finding] if finding is not None else [ANY, *names]
    classes: dict[str, Definition] = {name: "any" if name == ANY else (name,) for name in wanted}
    return Questions(having, targets_of(having, labels, classes, names)[:, None], wanted, is_pseudo=False)


def _known(cache: Cache, recipe: PretrainRecipe, *, is_flat: bool) -> list[ItemRecord]:
    """What is known of every image, or of every example where the recipe names channels."""
    if recipe.data.channels is None:
        return cache.require_records(modality=recipe.data.modality)
    found = training_examples(cache.entries(), recipe.data, takes_pictures=is_flat, talk=Silence())
    return [known_of(cache, example) for example in found]


def _levels(records: Sequence[ItemRecord]) -> Questions:
    answers = np.repeat(np.eye(len(LEVELS), dtype=np.float32), SLICES_PER_LEVEL, axis=0)
    return Questions(records, np.repeat(answers[None], len(records), axis=0), list(LEVELS), is_pseudo=True)


def _modalities(records: Sequence[ItemRecord]) -> Questions:
    names = sorted({record.modality for record in records})
    answers = np.array([[record.modality == name for name in names] for record in records], dtype=np.float32)
    return Questions(records, answers[:, None], list(names), is_pseudo=True)


@dataclass(frozen=True)
class _Sides:
    """Rows of embeddings to fit on and to test on.

    Args:
        is_tested: `[N]`.
        answers: `[N, K]`.
        folds: `[N]`; -1 of the tested.
        patients: `[N]`.
    """

    is_tested: NDArray[np.bool_]
    answers: NDArray[np.float32]
    folds: NDArray[np.int64]
    patients: NDArray[np.str_]


def _sides(asked: Questions, test: set[str], talk: Talk) -> tuple[Questions, _Sides]:
    """Split rows by patient; classes that are not both present and absent on both sides are left out."""
    pieces = asked.answers.shape[1]
    patients = np.repeat([record.patient_key for record in asked.records], pieces)
    people = same_people(asked.records)
    is_tested = np.isin(patients, list(test))
    fitted = shuffled(sorted({people[patient] for patient in patients[~is_tested].tolist()}), "probe")
    fold_of = {person: place % NUM_FOLDS for place, person in enumerate(fitted)}
    folds = np.array([-1 if tested else fold_of[people[patient]]
                      for patient, tested in zip(patients.tolist(), is_tested.tolist(), strict=True)])  # fmt: skip
    answers = asked.answers.reshape(-1, len(asked.classes))
    sides = (answers[is_tested], answers[~is_tested])
    is_told = np.all([(side == 1).any(axis=0) & (side == 0).any(axis=0) for side in sides], axis=0)
    if not is_told.any() or len(fitted) < NUM_FOLDS:
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"{len(fitted)} patients to fit on and {len(set(patients[is_tested].tolist()))} to test on do not tell "
            "any class from its absence",
            hint="ask for something that some patients show and others do not, or label more patients",
        )
    left_out = [name for name, told in zip(asked.classes, is_told.tolist(), strict=True) if not told]
    if left_out:
        talk.note(f"left out, as all or none show it on one side of the split: {', '.join(left_out)}")
    kept = [name for name in asked.classes if name not in left_out]
    told = Questions(asked.records, asked.answers[..., is_told], kept, asked.is_pseudo)
    return told, _Sides(is_tested, answers[:, is_told], folds, patients)


def _embed(
    network: nn.Module,
    items: Sequence[PreparedItem],
    recipe: PretrainRecipe,
    asked: Questions,
    device: str,
    name: str,
    talk: Talk,
) -> Tensor:
    """Embeddings of every image, the mean over its pieces, or of every slice by itself, `[N, E]` on the CPU."""
    by_itself = asked.answers.shape[1]
    size, found = recipe.data.crop_size, []
    at_once = PIECES if size[2] == 1 else PIECES // 8
    num_slices = by_itself if by_itself > 1 else SLICES
    loader = piece_loader(
        items, size, num_slices=num_slices, batch_size=PIECES // SLICES, num_workers=recipe.data.num_workers
    )
    assert isinstance(network, Backbone)
    for batch in loader:
        with torch.inference_mode():
            images = torch.cat(batch).split(at_once)
            embedded = torch.cat([network.embed(part.to(device)).float().cpu() for part in images])
        each = embedded.split([len(pieces) for pieces in batch])
        found += [rows if by_itself > 1 else rows.mean(dim=0, keepdim=True) for rows in each]
        talk.progress(f"embedding ({name})", len(found), len(items))
    return torch.cat(found)


def _scores(kind: Kind, embeddings: Tensor, sides: _Sides, what: str, talk: Talk) -> NDArray[np.float64]:
    """Scores of the tested rows, `[M, K]`; computed where the embeddings are."""
    is_tested = torch.from_numpy(sides.is_tested).to(embeddings.device)
    answers = torch.from_numpy(sides.answers).to(embeddings.device)[~is_tested]
    fitted, asked = embeddings[~is_tested], embeddings[is_tested]
    if kind == "knn":
        scores = neighbour_scores(fitted, answers, asked)
    else:
        folds = torch.from_numpy(sides.folds).to(embeddings.device)[~is_tested]
        scores, _ = linear_scores(
            fitted, answers, asked, folds, progress=lambda done, total: talk.progress(what, done, total)
        )
    found: NDArray[np.float64] = scores.cpu().numpy()
    return found


def _document(
    about: dict[str, Any], classes: Sequence[str], scores: dict[str, NDArray[np.float64]], sides: _Sides
) -> dict[str, Any]:
    patients, answers = sides.patients[sides.is_tested], sides.answers[sides.is_tested]
    fitted = sides.patients[~sides.is_tested].tolist()
    found = {
        name: _class_scores({arm: each[:, place] for arm, each in scores.items()}, answers[:, place], patients)
        for place, name in enumerate(classes)
    }
    alone = [each for name, each in found.items() if name != ANY] or list(found.values())
    document = {
        "schema": "medssl.probe/1",
        **about,
        "num_fitted_patients": len(set(fitted)),
        "num_fitted": len(fitted),
        "num_patients": len(set(patients.tolist())),
        "num_tested": len(patients),
        "mean_auroc": {arm: float(np.mean([each[arm]["auroc"]["mean"] for each in alone])) for arm in scores},
        "classes": found,
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def _class_scores(
    arms: dict[str, NDArray[np.float64]], answers: NDArray[np.float32], patients: NDArray[np.str_]
) -> dict[str, Any]:
    is_known = np.isfinite(answers)
    is_positive, known = answers[is_known] == 1, patients[is_known].tolist()
    shown: dict[str, Any] = {"num_known": len(known), "num_positive": int(is_positive.sum())}
    for arm, scores in arms.items():
        estimates = finding_estimates(scores[is_known], is_positive, known, rng=np.random.default_rng(BOOTSTRAP_SEED))
        shown[arm] = {name: asdict(estimate) for name, estimate in estimates.items()}
    trained, untrained = arms[PRETRAINED][is_known], arms[UNTRAINED][is_known]
    difference = bootstrap_figure(
        lambda weights: auroc(trained, is_positive, weights) - auroc(untrained, is_positive, weights),
        known,
        rng=np.random.default_rng(BOOTSTRAP_SEED),
        has_interval=has_patients_enough(is_positive, known),
    )
    return {**shown, "auroc_difference": asdict(difference)}
