"""`medssl finetune --unlabelled`: by which method."""


def with_unlabelled(task: str, overrides: list[str] | None) -> list[str]:
    """Overrides of a task's recipe with a method that learns from unlabelled images, unless there is one already.

    Raises:
        UsageError: `E_RECIPE`, `E_RECIPE_NOT_FOUND`, `E_UNKNOWN_NAME`; the task does not learn from them.
    """
    from medssl_cli.recipe import find_recipe, raw_recipe
    from medssl_cli.unlabelled import unlabelled_method_of

    given = list(overrides or [])
    document = raw_recipe(find_recipe(task, ("tasks",)), given)
    section, named = document.get("unlabelled"), document.get("task")
    if isinstance(section, dict) and "method" in section:
        return given
    if not (isinstance(named, dict) and isinstance(named.get("name"), str)):
        return given  # no recipe of a task: whoever reads it says what is missing
    return [f"unlabelled.method={unlabelled_method_of(named['name'])}", *given]
