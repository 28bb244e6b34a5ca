"""A gate that cannot fail: export proves the model against the very bundle that is under test.

Right: with the names of two classes exchanged, or another spacing, in the bundle, export ends with an error and writes
no model. What is expected comes from the run (its recipe and classes), what is found from the file that was written.
"""

from pathlib import Path

from tests.cases._model import trained


def run(medssl: str, folder: Path) -> dict:
    import medssl_cli.deploy.export as export
    from medssl_cli.base.errors import MedsslError
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.finetuned import load_finetuned

    _, run_folder, cache = trained(medssl, folder)
    run, make = load_finetuned(run_folder), export.make_bundle

    def swapped(bundle):
        names = bundle.head.classes
        return bundle.model_copy(
            update={"head": bundle.head.model_copy(update={"classes": {1: names[2], 2: names[1]}})}
        )

    def respaced(bundle):
        return bundle.model_copy(
            update={"preprocessing": bundle.preprocessing.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})}
        )

    caught = {}
    for name, fault in (("classes exchanged", swapped), ("spacing 3 mm for 2 mm", respaced)):
        export.make_bundle = lambda *run, fault=fault, **more: fault(make(*run, **more))
        try:
            export.export_network(run, folder / "model.onnx", cache=Cache.open(cache), cases=1, tolerance=1e-3)
            caught[name] = False
        except MedsslError:
            caught[name] = True
        finally:
            export.make_bundle = make
        (folder / "model.onnx").unlink(missing_ok=True)
    return {"expected": dict.fromkeys(caught, True), "found": caught}
