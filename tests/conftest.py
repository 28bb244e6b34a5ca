"""Fixtures that every test may use."""

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medssl_cli.work import workers
from tests import given_codes, warm

os.environ.setdefault("OMP_NUM_THREADS", "1")
START_CHILD = workers.start_child


def find_shared_data() -> Path | None:
    """The development images beside the checkout, or where `MEDSSL_TEST_DATA` points."""
    named = os.environ.get("MEDSSL_TEST_DATA")
    candidates = [Path(named)] if named else [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    return next((path for path in candidates if (path / "README.md").is_file()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images for development. They are not redistributable; where they are absent the test is skipped."""
    found = find_shared_data()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the development images are missing, and CI=true says that they must be there")
        pytest.skip("the development images are not beside this checkout (set MEDSSL_TEST_DATA)")
    return found


@pytest.fixture(scope="session", autouse=True)
def _warm_children() -> Iterator[None]:
    """Children of this process that read files or run a model are forks of one that has loaded what they need."""
    with pytest.MonkeyPatch.context() as patch:
        for module in warm.MODULES_WITH_CHILDREN:
            patch.setattr(f"{module}.start_child", warm.start_child)
        yield


@pytest.fixture(autouse=True)
def _commands_end_with_their_test() -> Iterator[None]:
    """A test that fails between the start of a command and its end leaves no process behind, and no pipe."""
    before = {*warm.WarmProcess.running}
    yield
    warm.WarmProcess.close_others(before)


@pytest.fixture(scope="module", autouse=True)
def _shared_folders_end_with_their_module(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What tests of a module share is gone after them, unless one has failed; pytest removes what is theirs alone."""
    failed, root = request.session.testsfailed, tmp_path_factory.getbasetemp()
    before = set(root.iterdir())
    yield
    if request.session.testsfailed == failed:
        for folder in set(root.iterdir()) - before:
            if not folder.name.startswith("test_"):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def children_with_torch() -> Iterator[None]:
    """Children of this process that read weights have loaded torch, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "start_child", functools.partial(warm.start_child, kind="training"))
        yield


@pytest.fixture
def cold_children() -> Iterator[None]:
    """Children of this process begin as those of a user: for tests of how they begin, die and are limited."""
    with pytest.MonkeyPatch.context() as patch:
        for module in warm.MODULES_WITH_CHILDREN:
            patch.setattr(f"{module}.start_child", START_CHILD)
        yield


@pytest.fixture(autouse=True)
def _private_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the user's caches, keys, models or recipes."""
    monkeypatch.delenv("MEDSSL_CACHE", raising=False)
    monkeypatch.delenv("MEDSSL_KEY_FILE", raising=False)
    monkeypatch.setenv("MEDSSL_MODELS", str(tmp_path / "installed-models"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests begin first, so that no process waits for the other at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_configure(config: pytest.Config) -> None:
    """Watch what the program says. `MEDSSL_CHECK_CODES=1` fails a run of all tests that left a code out."""
    if not hasattr(config, "workerinput"):
        os.environ["MEDSSL_GIVEN_CODES"] = tempfile.mkdtemp(prefix="medssl-codes-")
    given_codes.watch()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over as a worker, judge as the one that started them."""
    folder = Path(os.environ["MEDSSL_GIVEN_CODES"])
    if hasattr(session.config, "workerinput"):
        (folder / str(os.getpid())).write_text(" ".join(given_codes.given))
        return
    for path in folder.iterdir():
        given_codes.given.update(path.read_text().split())
    shutil.rmtree(folder)
    if os.environ.get("MEDSSL_CHECK_CODES") and (missing := given_codes.missing()):
        print("\ncodes that no test has made the program give:", *missing)  # noqa: T201
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
