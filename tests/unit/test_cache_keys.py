"""Which key a cache's pseudonyms are made with, and that reading needs none."""

import json
from pathlib import Path

import platformdirs
import pytest
from typer.testing import CliRunner

from medssl_cli.base.errors import Exit, GateError, UsageError
from medssl_cli.cache import marker
from medssl_cli.cache.keys import create_key, load_key, site_key_path
from medssl_cli.cache.store import Cache
from medssl_cli.cli.app import app
from medssl_cli.cli.options import models_folder
from tests.small_cache import stored, volume_of


@pytest.fixture(autouse=True)
def site_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's site key would be; there is none yet."""
    path = tmp_path / "config" / "site.key"
    monkeypatch.setattr(marker, "site_key_path", lambda: path)
    return path


def patient_of(cache: Cache) -> str:
    return cache.pseudonyms.of("patient", "42")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_without_a_site_key_each_cache_has_an_ephemeral_one(tmp_path):
    first, second = Cache.open_or_create(tmp_path / "a"), Cache.open_or_create(tmp_path / "b")

    assert first.key_is_ephemeral
    assert patient_of(first) != patient_of(second)
    assert patient_of(Cache.open(tmp_path / "a")) == patient_of(first)
    assert mode(tmp_path / "a" / "site.key") == 0o600


def test_caches_made_with_the_site_key_share_pseudonyms_and_hold_no_key(tmp_path, site_key):
    assert create_key(site_key)
    assert not create_key(site_key)
    first, second = Cache.open_or_create(tmp_path / "a"), Cache.open_or_create(tmp_path / "b")

    assert not first.key_is_ephemeral
    assert patient_of(first) == patient_of(second)
    assert mode(site_key) == 0o600
    assert not list(tmp_path.glob("[ab]/site.key"))
    assert json.loads((tmp_path / "a" / "cache.json").read_text()) == {
        "format_version": 2, "key_id": first.pseudonyms.key_id, "key_path": None, "key_place": "site",
    }  # fmt: skip


def test_a_cache_keeps_its_ephemeral_key_when_a_site_key_is_made_later(tmp_path, site_key):
    before = patient_of(Cache.open_or_create(tmp_path / "a"))
    create_key(site_key)

    assert patient_of(Cache.open_or_create(tmp_path / "a")) == before


def test_a_key_file_that_is_named_is_remembered_and_may_move(tmp_path):
    create_key(tmp_path / "one.key")
    before = patient_of(Cache.open_or_create(tmp_path / "a", tmp_path / "one.key"))
    assert patient_of(Cache(tmp_path / "a")) == before

    (tmp_path / "one.key").rename(tmp_path / "moved.key")
    with pytest.raises(GateError, match="E_KEY"):
        patient_of(Cache.open(tmp_path / "a"))
    assert patient_of(Cache.open_or_create(tmp_path / "a", tmp_path / "moved.key")) == before
    assert patient_of(Cache.open(tmp_path / "a")) == before


def test_another_key_is_refused(tmp_path, site_key):
    create_key(site_key)
    create_key(tmp_path / "other.key")
    Cache.open_or_create(tmp_path / "a")

    with pytest.raises(GateError, match="E_KEY"):
        Cache.open_or_create(tmp_path / "a", tmp_path / "other.key")
    site_key.write_bytes(b"x" * 32)
    with pytest.raises(GateError, match="E_KEY"):
        patient_of(Cache.open(tmp_path / "a"))


@pytest.mark.parametrize("content", [None, b"", b"k" * 31, b"k" * 33], ids=["missing", "empty", "short", "long"])
def test_a_damaged_key_is_not_a_key(tmp_path, content):
    if content is not None:
        (tmp_path / "site.key").write_bytes(content)

    with pytest.raises(GateError, match="E_KEY"):
        load_key(tmp_path / "site.key")


def test_reading_needs_no_key(tmp_path, site_key):
    create_key(site_key)
    record = stored(Cache.open_or_create(tmp_path / "a"), volume_of())
    site_key.unlink()

    cache = Cache.open(tmp_path / "a")

    assert cache.records() == [record]
    assert cache.read_image(record).shape == record.shape
    assert list(cache.verify()) == [None]
    assert cache.rebuild() == 1
    with pytest.raises(GateError, match="E_KEY"):
        patient_of(cache)


def test_key_init_makes_a_key_once_and_show_prints_its_id_only(tmp_path):
    file = tmp_path / "keys" / "hospital.key"
    first = CliRunner().invoke(app, ["key", "init", "--key-file", str(file), "--json"])
    again = CliRunner().invoke(app, ["key", "init", "--json"], env={"MEDSSL_KEY_FILE": str(file)})
    shown = CliRunner().invoke(app, ["key", "show", "--key-file", str(file)])
    missing = CliRunner().invoke(app, ["key", "show", "--key-file", str(tmp_path / "none")])

    made, kept = json.loads(first.stdout), json.loads(again.stdout)
    assert (made["is_new"], kept["is_new"]) == (True, False)
    assert shown.stdout.strip() == made["key_id"] == kept["key_id"]
    assert file.read_bytes().hex() not in first.output + again.output + shown.output
    assert (missing.exit_code, mode(file), mode(file.parent)) == (Exit.GATE, 0o600, 0o700)
    assert "E_KEY" in missing.output


def test_a_user_without_a_home_needs_none_unless_for_the_key_of_a_site(tmp_path, monkeypatch):
    """As under a container launcher that gives neither HOME nor an entry in the password file."""

    def homeless(*args, **kwargs):
        raise RuntimeError("Could not determine home directory.")

    for name in ("user_config_path", "user_data_path"):
        monkeypatch.setattr(platformdirs, name, homeless)
    monkeypatch.setattr(marker, "site_key_path", site_key_path)

    assert Cache.open_or_create(tmp_path / "a").key_is_ephemeral
    assert models_folder(None) == Path("medssl-models")
    assert models_folder(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="E_NO_HOME") as caught:
        site_key_path()
    assert "--key-file" in caught.value.hint
    create_key(tmp_path / "named.key")
    assert not Cache.open_or_create(tmp_path / "b", tmp_path / "named.key").key_is_ephemeral
