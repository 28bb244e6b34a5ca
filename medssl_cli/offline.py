"""Libraries that would report to their makers, or leave files in a user's home, are told not to before they load.

medssl opens a connection only to a server that the user names (`dicomweb://`, a tracking service, a cluster). Some of
the libraries below it decide otherwise unless their environment says no, and read it when they are imported: ONNX
Runtime 1.31 keeps a device number and a queue of events under `~/.cache/Microsoft` and sends them. So this runs when
`medssl_cli` itself is imported, before any of them; child processes inherit the environment.
"""

import atexit
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

SWITCHES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Reports of libraries to their makers: ONNX Runtime, MLflow, wandb, huggingface_hub (if MONAI finds it), and the
convention that further ones follow. They are set whatever the environment says."""

DOWNLOADS: Final = {"HF_HUB_OFFLINE": "1"}
"""Downloads that no command of medssl asks for; a program that uses medssl as a library may set them otherwise."""

CACHE_FOLDERS: Final = (
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "WANDB_CACHE_DIR",
    "WANDB_DATA_DIR",
)
"""Where matplotlib, fontconfig, torch and wandb keep what they could make anew: by default in the user's home, or in a
temporary folder that nobody removes. Who names a folder keeps it, for compiled networks for example."""


USER_NAMES: Final = ("LOGNAME", "USER", "USERNAME", "LNAME")
"""Where Python looks for the user's name, of which MONAI makes a note; without one it asks the system, which may ask a
server, and fails in a container whose user has no name."""

SOCKET_OPENER: Final = "urllib3.util.connection"
"""pydicom, highdicom and MONAI import it for downloads that they may be asked for; when it is imported it opens a
socket and looks an address up, to see whether there is IPv6."""


def stay_offline() -> None:
    """Set the switches of this process and of those that it will start."""
    os.environ.update(SWITCHES)
    for name, value in DOWNLOADS.items():
        os.environ.setdefault(name, value)
    if not any(os.environ.get(name) for name in USER_NAMES):
        os.environ[USER_NAMES[-1]] = "user"
    if SOCKET_OPENER not in sys.modules:
        sys.meta_path.insert(0, _WithoutSockets())
    unset = [name for name in CACHE_FOLDERS if not os.environ.get(name)]
    if unset:
        folder = os.path.join(_temporary_folder(), f"medssl-caches-{os.urandom(8).hex()}")  # noqa: PTH118 - imports
        os.environ.update(dict.fromkeys(unset, folder))
        atexit.register(_remove, folder, os.getpid())


def _temporary_folder() -> str:
    return os.environ.get("TMPDIR") or "/tmp"


def _remove(folder: str, owner: int) -> None:
    """Remove the caches, if a library made any; processes forked from this one leave them to it."""
    if os.getpid() == owner and os.path.isdir(folder):  # noqa: PTH112 - pathlib costs every command its import
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


class _WithoutSockets(MetaPathFinder):
    """Finds urllib3's module that opens a socket when it is imported, and has it believe that there is IPv6."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, to be imported without its trial; None for all others."""
        if fullname != SOCKET_OPENER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Untried(spec.loader)
        return spec


class _Untried(Loader):
    """Runs a module while Python says that it knows no IPv6; where that is untrue, a connection tries both anyway."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        import socket

        known, socket.has_ipv6 = socket.has_ipv6, False
        try:
            self._loader.exec_module(module)
        finally:
            socket.has_ipv6 = known
        module.__dict__["HAS_IPV6"] = known
