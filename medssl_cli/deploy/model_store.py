"""Installed models: a folder with one `<task>.onnx` per task, each sealed and self-describing."""

from dataclasses import dataclass
from pathlib import Path

from medssl_cli.base.errors import MedsslError, UsageError
from medssl_cli.base.files import make_output_folder, remove_temporaries, storage_errors, write_atomic
from medssl_cli.base.plugins import suggest
from medssl_cli.deploy.bundle import Bundle, load_model, read_bundle


@dataclass(frozen=True)
class InstalledModel:
    """One model of the store. `bundle` is None, with `problem` saying why, where the file cannot be read."""

    name: str
    path: Path
    bundle: Bundle | None
    size_bytes: int
    problem: str = ""


class ModelStore:
    """A folder of installed models.

    Args:
        root: The folder; made by the first `add`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of the installed models, sorted."""
        return sorted(path.stem for path in self.root.glob("*.onnx") if not path.name.startswith("."))

    def models(self) -> list[InstalledModel]:
        """Every installed model, by what the start of its file says; damaged ones are listed with their problem."""
        found = []
        for name in self.names():
            path = self.path_of(name)
            bundle, problem = None, ""
            try:
                bundle = read_bundle(path)
            except MedsslError as error:
                problem = f"{error.code}: {error.message}"
            found.append(InstalledModel(name, path, bundle, path.stat().st_size, problem))
        return found

    def find(self, name: str) -> Path:
        """The file of an installed model.

        Raises:
            UsageError: `E_NO_MODEL`, with what to do about it.
        """
        if name in self.names():
            return self.path_of(name)
        installed = self.names()
        hint = f"train one and install it: medssl finetune --task {name}, then medssl export RUN --install"
        if installed:
            hint = f"{suggest(name, installed)} Or {hint}"
        raise UsageError("E_NO_MODEL", f"no model called {name!r} is installed", hint=hint)

    def show(self, name: str) -> InstalledModel:
        """An installed model, or the one in a file, every byte of it checked.

        Raises:
            UsageError: `E_NO_MODEL`, `E_NOT_FOUND`, `E_MODEL_INVALID`.
            GateError: `E_MODEL_CORRUPT`.
        """
        path = resolve_model(name, self)
        _, bundle, _ = load_model(path)
        return InstalledModel(name, path, bundle, path.stat().st_size)

    def add(self, source: Path) -> InstalledModel:
        """Check a model and copy it into the store under its task's name; an older one of that name is replaced.

        Raises:
            UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`.
            GateError: `E_MODEL_CORRUPT`.
            StorageError: `E_IO`.
        """
        data, bundle, _ = load_model(source)
        make_output_folder(self.root)
        remove_temporaries(self.root)
        path = self.path_of(bundle.task)
        if not (path.is_file() and path.read_bytes() == data):
            write_atomic(path, data, is_output=True)
        return InstalledModel(bundle.task, path, bundle, len(data))

    def remove(self, name: str) -> None:
        """Delete an installed model.

        Raises:
            UsageError: `E_NO_MODEL`.
        """
        path = self.find(name)
        with storage_errors("the model store"):
            path.unlink()

    def path_of(self, name: str) -> Path:
        """Where a model of a name is or would be."""
        return self.root / f"{name}.onnx"


def resolve_model(task: str, store: ModelStore) -> Path:
    """What `--task` means when inferring: an installed model's name, or a path to a `model.onnx`.

    Raises:
        UsageError: `E_NO_MODEL`, `E_NOT_FOUND`.
    """
    if task in store.names():
        return store.find(task)
    if task.endswith(".onnx") or "/" in task:
        path = Path(task)
        if not path.is_file():
            raise UsageError("E_NOT_FOUND", f"no model file {task}")
        return path
    return store.find(task)
