"""From names and options in a recipe to networks; wrong options become recipe errors, all at once."""

from typing import Any, Final

from torch import nn

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.base.faults import validate_model
from medssl_cli.base.plugins import suggest
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.methods import MethodBase
from medssl_cli.nn.axes import misfit
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import PretrainRecipe, Recipe, TaskRecipe
from medssl_cli.tasks import SupervisionBase, load_part, supervision_of, task_options
from medssl_cli.unlabelled import KIND, AnswerMeaning, UnlabelledMethod, learning_unlabelled, unlabelled_method_of

INSTANCE_NORMS: Final = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def build_method(recipe: PretrainRecipe) -> MethodBase:
    """The method of a recipe around a freshly initialised backbone; the same seed gives the same weights.

    Raises:
        UsageError: `E_UNKNOWN_NAME`, `E_RECIPE` or `E_CANVAS`.
    """
    module = plugins.load("method", recipe.method.name)
    options = validate_model(module.Options, recipe.method.options, source=f"method {recipe.method.name}")
    with implicit_randomness(recipe.seed, Purpose.INITIALISATION):
        backbone = build_backbone(recipe.backbone, in_channels=len(recipe.data.rules))
        check_dims(recipe, backbone, module.Method.dims)
        _check_crop(recipe, backbone)
        method: MethodBase = module.Method(backbone, options, recipe.data.crop_size)
    if method.views().slices is not None:
        _check_slices(recipe)
    method.require_batch(recipe.data.batch_size)
    return method


def _check_slices(recipe: PretrainRecipe) -> None:
    """What a recipe cannot ask of slices."""
    if any(part.spacing_mm is not None for part in (recipe.data, *recipe.data.parts)):
        raise UsageError(
            "E_RECIPE",
            f"data.spacing_mm does not go with {recipe.method.name}: slices are scaled to data.crop_size",
            hint="leave data.spacing_mm out",
        )
    width, height, depth = recipe.data.crop_size
    if width != height or depth != 1:
        raise UsageError(
            "E_RECIPE",
            f"data.crop_size {list(recipe.data.crop_size)} is no square of one slice, as {recipe.method.name} needs",
            hint=f"for example [{width}, {width}, 1]",
        )


def build_task(recipe: TaskRecipe) -> nn.Module:
    """The network of a task recipe, freshly initialised.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    network, options = load_part(recipe.task.name, "network").NETWORK, task_options(recipe)
    with implicit_randomness(recipe.seed, Purpose.INITIALISATION):
        backbone = build_backbone(recipe.backbone, in_channels=len(recipe.data.rules))
        _check_crop(recipe, backbone, takes_stacks=network.takes_stacks)
        network.require_fit(recipe, options)
        try:
            task: nn.Module = network(backbone, options)
        except ValueError as error:
            raise UsageError("E_RECIPE", f"task {recipe.task.name}: {error}") from error
    return task


def check_recipe(recipe: Recipe, *, is_network_planned: bool = False) -> None:
    """Build everything once, to find every fault that validation of the YAML alone cannot see.

    Args:
        recipe: Any recipe.
        is_network_planned: Its network, or what it sees, stands for one that a plan will give; it is not built.

    Raises:
        UsageError: The fault.
    """
    if isinstance(recipe, PretrainRecipe):
        build_method(recipe)
    else:
        supervision = supervision_of(recipe)
        task = None if is_network_planned else build_task(recipe)
        _ = supervision.preprocessing
        require_known_classes(recipe)
        if recipe.unlabelled is not None and task is not None:
            build_unlabelled(recipe, task, supervision)


def require_known_classes(recipe: TaskRecipe) -> None:
    """Refuse details of classes that the task does not have.

    Raises:
        UsageError: `E_RECIPE`, with the nearest name.
    """
    if not recipe.class_details:
        return
    names = list(supervision_of(recipe).classes.values())
    for name in recipe.class_details:
        if name not in names:
            raise UsageError("E_RECIPE", f"class_details: no class is called {name!r}", hint=suggest(name, names))


def build_unlabelled(recipe: TaskRecipe, task: nn.Module, supervision: SupervisionBase) -> UnlabelledMethod:
    """The method by which a task recipe learns from unlabelled images; it has one.

    Args:
        recipe: Recipe with a section `unlabelled`.
        task: Network of the recipe.
        supervision: What the task learns from.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    section = recipe.unlabelled
    assert section is not None
    learning_unlabelled(supervision)
    module = plugins.load(KIND, section.method)
    options = validate_model(module.OPTIONS, section.options, source=f"unlabelled {section.method}")
    if supervision.annotation not in module.METHOD.annotations:
        raise UsageError(
            "E_RECIPE",
            f"unlabelled.method {section.method} is not for {recipe.task.name}",
            hint=f"for example unlabelled.method={unlabelled_method_of(recipe.task.name)}",
        )
    if module.METHOD.pairs_images and section.batch_size not in (None, recipe.data.batch_size):
        raise UsageError(
            "E_RECIPE",
            f"unlabelled.batch_size is {section.batch_size}, and {section.method} needs one image for each of the "
            f"{recipe.data.batch_size} of data.batch_size",
            hint="leave unlabelled.batch_size out",
        )
    network: Any = task
    target = AnswerMeaning(network.activation, tuple(supervision.classes.values()), network.backbone.spatial_dims)
    method: UnlabelledMethod = module.METHOD(options, target)
    return method


def check_canvas(recipe: Recipe, backbone: Backbone, module: Any) -> None:
    """Refuse crops and dimensions that do not fit a backbone and a task or method.

    Raises:
        UsageError: `E_CANVAS` or `E_RECIPE`.
    """
    if isinstance(recipe, PretrainRecipe):
        check_dims(recipe, backbone, module.Method.dims)
        _check_crop(recipe, backbone)
    else:
        _check_crop(recipe, backbone, takes_stacks=module.NETWORK.takes_stacks)


def check_dims(recipe: PretrainRecipe, backbone: Backbone, dims: frozenset[int]) -> None:
    """Refuse a backbone of other dimensions than a method's.

    Raises:
        UsageError: `E_RECIPE`.
    """
    if backbone.spatial_dims not in dims:
        wanted = " or ".join(str(number) for number in sorted(dims))
        raise UsageError(
            "E_RECIPE",
            f"{recipe.method.name} needs a backbone of {wanted} spatial dimensions, "
            f"{recipe.backbone.name} has {backbone.spatial_dims}",
            hint=f"set backbone.spatial_dims to {wanted}",
        )


def _check_crop(recipe: Recipe, backbone: Backbone, *, takes_stacks: bool = False) -> None:
    sizes = {"data.crop_size": recipe.data.crop_size}
    if isinstance(recipe, TaskRecipe):
        sizes["inference.tile_size"] = recipe.tile_size
    multiple, dims = backbone.crop_multiple, backbone.spatial_dims
    needs_two_voxels = any(isinstance(module, INSTANCE_NORMS) for module in backbone.modules())
    for name, size in sizes.items():
        is_suitable = size[2] > 1 if dims == 3 else size[2] == 1 or takes_stacks
        if not is_suitable:
            raise UsageError(
                "E_CANVAS",
                f"{name} {list(size)} is not for {recipe.backbone.name}, a network of {dims}D images",
                hint="2D images have a third size of 1 and a backbone with spatial_dims: 2; volumes neither",
            )
        extents = size[:dims]
        fault = misfit(extents, multiple)
        if fault is not None:
            raise UsageError("E_CANVAS", f"{name} {list(size)} is not for {recipe.backbone.name}: {fault}")
        if needs_two_voxels and extents == multiple:
            raise UsageError(
                "E_CANVAS",
                f"{name} {list(size)} leaves one voxel at the coarsest level of {recipe.backbone.name}, "
                "of which instance normalisation has no variance",
                hint="choose larger crops, or smaller backbone.strides",
            )
