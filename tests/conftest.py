"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture(autouse=True)
def _private_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the user's caches, keys, models or recipes."""
    monkeypatch.delenv("MEDSSL_CACHE", raising=False)
    monkeypatch.delenv("MEDSSL_KEY_FILE", raising=False)
    monkeypatch.setenv("MEDSSL_MODELS", str(tmp_path / "installed-models"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
