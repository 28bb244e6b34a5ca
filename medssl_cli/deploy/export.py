"""From a run to one proven `model.onnx`.

The file is written under a temporary name, read again, and must give the trained network's answers on whole cached
images through the very code that `infer` runs (`deploy.parity`). Only then it gets its name.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medssl_cli import __version__
from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import examples_of, read_images
from medssl_cli.deploy.bundle import Bundle, Precision, patient_digest
from medssl_cli.deploy.parity import (
    LIMITS,
    SEEN_SPLITS,
    Comparison,
    ParityLimits,
    TrainedRun,
    compare,
    expected_contract,
    require_contract,
)
from medssl_cli.deploy.proven_file import attach_unproven, onnx_graph, refuse_foreign_file, write_proven
from medssl_cli.deploy.run_scores import RunScores, scores_of
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.training_summary import WithEmbedding, compare_embeddings, summary_of
from medssl_cli.heads import Head
from medssl_cli.recipe import recipe_hash
from medssl_cli.tasks import TaskNetwork, supervision_of

if TYPE_CHECKING:
    from medssl_cli.engine.finetuned import FineTunedRun

UNSEEN_SPLITS: Final = ("test", "val")


def export_run(
    run_dir: Path,
    model_path: Path,
    *,
    cache_root: Path,
    cases: int = 4,
    tolerance: float | None = None,
    precision: Precision = "float32",
    licence: str = "not stated",
    mirror_axes: tuple[int, ...] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a finished run to ONNX and prove that it still gives the same answers.

    Args:
        run_dir: Written by `finetune`, or by `pretrain` with a method that exports something. Of a folder of folds the
            mean of their networks is exported.
        model_path: File to write; a medssl model of that name is replaced.
        cache_root: The cache of the run; images of its test and validation patients serve as proof.
        cases: Whole images to compare.
        tolerance: Largest allowed difference of a logit, relative to max(1, largest logit of the tile), instead of
            that of `LIMITS`.
        precision: Numbers that the file computes in.
        licence: Licence of the weights.
        mirror_axes: The model averages its answers over the flips along these axes, instead of the recipe's.
        tell: Told what is worth knowing.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_NO_CACHE`, `E_OUTPUT_EXISTS` if another kind of file is there.
        UsageError: `E_TASK_EXPORT`, the run is of a task whose answers no exported model gives; `E_USAGE`, a
            pre-training without an encoder of volumes.
        NothingUsableError: `E_CACHE_EMPTY` if the cache has none of the run's images.
        InputError: `E_CHANNEL_MISSING`, `E_CHANNEL_AMBIGUOUS`, `E_CHANNEL_GRID`, it has lost some of their channels.
        GateError: `E_PARITY`; no file is written. `E_RUN_CORRUPT`, `E_CHECKPOINT_CORRUPT`.
        StorageError: `E_IO`.
    """
    from medssl_cli.engine.evaluate import Terms
    from medssl_cli.engine.fold_runs import are_folds
    from medssl_cli.engine.runs import is_pretraining

    if is_pretraining(run_dir):
        from medssl_cli.deploy.embeddings import export_embeddings

        limits = limits_of(precision, tolerance)
        return export_embeddings(run_dir, model_path, cache_root=cache_root, cases=cases, limits=limits,
                                 precision=precision, licence=licence)  # fmt: skip
    members = _members(run_dir, mirror_axes)
    cache, run, head = Cache.open(cache_root), members[0], None
    if not run.is_exportable:
        raise UsageError(
            "E_TASK_EXPORT",
            f"answers of the task {run.recipe.task.name} are of no kind that an exported model can give",
            hint="medssl evaluate scores the run folder itself",
        )
    if are_folds(run_dir):
        from medssl_cli.engine.ensemble import ensemble_of, mean_head
        from medssl_cli.engine.fold_runs import fold_words

        run = ensemble_of(run_dir, members)
        head = mean_head([head_of(member, cache) for member in members])
        tell(f"the mean of the networks of {fold_words(run_dir)}")
    return export_network(
        run,
        model_path,
        cache=cache,
        cases=cases,
        tolerance=tolerance,
        precision=precision,
        licence=licence,
        tell=tell,
        head=head,
        scores=scores_of(run_dir, weights_sha256=run.weights_sha256, words=Terms(mirror_axes=mirror_axes).words),
    )


def limits_of(precision: Precision, tolerance: float | None) -> ParityLimits:
    """How far a file that computes in these numbers may be from its run, with another tolerance where one is given."""
    limits = LIMITS[precision]
    return limits if tolerance is None else replace(limits, tolerance=tolerance)


def _members(run_dir: Path, mirror_axes: tuple[int, ...] | None) -> "list[FineTunedRun]":
    """The run, or the runs of a folder of folds, with the mirroring that is asked for."""
    from medssl_cli.engine.ensemble import load_folds
    from medssl_cli.engine.evaluate import Terms
    from medssl_cli.engine.finetuned import load_finetuned
    from medssl_cli.engine.fold_runs import are_folds

    members = load_folds(run_dir) if are_folds(run_dir) else [load_finetuned(run_dir)]
    terms = Terms(mirror_axes=mirror_axes)
    return [replace(member, recipe=terms.applied(member.recipe)) for member in members]


def export_network(
    run: TrainedRun,
    model_path: Path,
    *,
    cache: Cache,
    cases: int,
    tolerance: float | None = None,
    precision: Precision = "float32",
    licence: str = "not stated",
    tell: Callable[[str], None] = lambda _: None,
    head: Head | None = None,
    scores: RunScores | None = None,
) -> Bundle:
    """`export_run` for a run in memory; `head` where it is not chosen on the run's own validation images."""
    refuse_foreign_file(model_path)
    records = proof_records(run.manifest, cache, cases)
    head = head or head_of(run, cache)
    network = run.network.exported(head) if isinstance(run.network, TaskNetwork) else run.network
    preprocessing = supervision_of(run.recipe).preprocessing
    told = {"training": summary_of(run, network, head, preprocessing, cache), "scores": scores}
    limits = limits_of(precision, tolerance)
    unproven = make_bundle(run, head, licence=licence, precision=precision, **told)
    has_embeddings = unproven.embeddings is not None
    traced = WithEmbedding(network) if has_embeddings else network
    graph = onnx_graph(traced, unproven.inputs, unproven.outputs, precision)
    images = [read_images(cache, example) for example in examples_of(cache, records, preprocessing)]

    def proven(model: OnnxModel) -> Comparison:
        require_contract({**expected_contract(run, head, precision), **told}, model.bundle)
        comparison = compare(run, head, model, images, limits)
        if has_embeddings:
            compare_embeddings(WithEmbedding(network), model, head, preprocessing, images, comparison)
        return comparison

    comparison, bundle = write_proven(model_path, attach_unproven(graph, unproven), proven)
    if not comparison.num_marked:
        tell("W_PROOF_EMPTY: the model marks nothing in the images of the proof; answers were compared on noise only")
    return bundle


def head_of(run: TrainedRun, cache: Cache) -> Head:
    """How the answers of a run's network are read; its operating points are chosen on the validation images.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, the cache has not all of these images with their labels.
    """
    from medssl_cli.engine.evaluate import labelled_split
    from medssl_cli.engine.predict import torch_predict

    supervision = supervision_of(run.recipe)
    return supervision.head(
        run.network,
        torch_predict(run.network, "cpu"),
        lambda: (cache, labelled_split(cache, run.manifest, "val", supervision)),
    )


def make_bundle(run: TrainedRun, head: Head, *, licence: str, **told: Any) -> Bundle:
    """All that the run says about its model, before the proof; `told` are fields that are found out elsewhere."""
    recipe, splits, supervision = run.recipe, run.manifest["splits"], supervision_of(run.recipe)
    seen = {patient_digest(entry["patient"]) for name in SEEN_SPLITS for entry in splits.get(name, ())}
    return Bundle(
        task=recipe.name,
        preprocessing=supervision.preprocessing,
        head=head,
        in_channels=run.in_channels,
        modality=recipe.data.modality,
        label_set=supervision.label_set,
        medssl_version=__version__,
        recipe_sha256=recipe_hash(recipe),
        weights_sha256=run.weights_sha256,
        manifest_sha256=run.manifest["sha256"],
        trained_on=tuple(sorted(seen)),
        split_seed=recipe.split_seed,
        fold=run.manifest["arguments"]["fold"],
        class_details=recipe.class_details,
        algorithm=recipe.algorithm,
        intended_use=recipe.intended_use,
        licence=licence,
        **told,
    )


def proof_records(manifest: dict[str, Any], cache: Cache, cases: int) -> list[ItemRecord]:
    """Annotated images of the examples to compare on: patients that the network was not trained on, in the run's order.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    known = {record.item_id: record for record in cache.records()}
    wanted = [entry["item"] for name in UNSEEN_SPLITS for entry in manifest["splits"].get(name, ())]
    found = [known[item] for item in wanted if item in known][:cases]
    if not found:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            "the cache holds no test or validation image of the run, so the export cannot be proven",
            hint="name the cache that the run was trained on with --cache",
        )
    return found
