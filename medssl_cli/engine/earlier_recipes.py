"""What recipes of earlier versions meant, where the same words mean something else now."""

from medssl_cli.nn.build import DECODER_NORM
from medssl_cli.recipe import Recipe, TaskRecipe
from medssl_cli.tasks import load_part


def with_norm_of_decoder(recipe: Recipe) -> Recipe:
    """A recipe from before decoders followed `backbone.norm`, in the words of today.

    Raises:
        UsageError: `E_UNKNOWN_NAME`, there is no such task any more.
    """
    if not isinstance(recipe, TaskRecipe) or "norm" not in recipe.backbone.options:
        return recipe
    has_decoder = "decoder" in load_part(recipe.task.name, "network").OPTIONS.model_fields
    decoder = recipe.task.options.get("decoder", {})
    if not has_decoder or not isinstance(decoder, dict) or "norm" in decoder or decoder.get("name", "unet") != "unet":
        return recipe
    task = recipe.task.model_copy(update={"decoder": {**decoder, "norm": DECODER_NORM}})
    return recipe.model_copy(update={"task": task})
