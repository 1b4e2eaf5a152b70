"""Settings: the environment over a file over the defaults; what is wrong stops the start and is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bss_sync.domain.errors import ConfigurationError
from bss_sync.domain.ownership import default_document
from bss_sync.resources import resource_folder
from bss_sync.settings import PREFIX, Settings, load_settings

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BSS_SYNC_HOME", str(tmp_path))


def _file(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_anything_set_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.bind == "127.0.0.1:8080"
    assert (settings.host, settings.port, settings.base_url) == ("127.0.0.1", 8080, "http://127.0.0.1:8080")
    assert settings.database_url is None
    assert settings.redis_url is None


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BSS_SYNC_CONFIG", _file(tmp_path / "own.toml", 'bind = "0.0.0.0:9000"\nworker_threads = 2\n'))
    monkeypatch.setenv("BSS_SYNC_BIND", "127.0.0.1:9001")
    settings = load_settings()
    assert settings.bind == "127.0.0.1:9001"
    assert settings.worker_threads == 2


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_SYNC_DATABASE_URL", "")
    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BSS_SYNC_BIND", "nowhere"),
        ("BSS_SYNC_BIND", "127.0.0.1:99999"),
        ("BSS_SYNC_BIND", "::1:8080"),
        ("BSS_SYNC_PUBLIC_URL", "ftp://example.com"),
        ("BSS_SYNC_DATABASE_URL", "mysql://root:hunter2@localhost/x"),
        ("BSS_SYNC_REDIS_URL", "http://:hunter2@localhost"),
        ("BSS_SYNC_TIME_ZONE", "Mars/Olympus"),
        ("BSS_SYNC_CURRENCY", "euro"),
        ("BSS_SYNC_LOG_LEVEL", "loud"),
        ("BSS_SYNC_LEASE_SECONDS", "soon"),
        ("BSS_SYNC_WORKER_THREADS", "0"),
        ("BSS_SYNC_NO_SUCH_THING", "1"),
    ],
)
def test_a_wrong_setting_is_named_first_and_its_value_never(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.detail.startswith(f"{name}: ")
    assert "hunter2" not in caught.value.detail + caught.value.advice


def test_an_unknown_name_in_the_file_is_named_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BSS_SYNC_CONFIG", _file(tmp_path / "own.toml", 'bindd = "127.0.0.1:1"\n'))
    with pytest.raises(ConfigurationError, match=r"^bindd: there is no such setting"):
        load_settings()


@pytest.mark.parametrize("text", ["bind = ", None])
def test_a_file_that_cannot_be_read_names_the_setting_that_named_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("BSS_SYNC_CONFIG", str(path))
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_CONFIG: "):
        load_settings()


def test_an_owner_without_a_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_SYNC_DATABASE_OWNER_URL", "postgresql://owner@localhost/x")
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_DATABASE_OWNER_URL: "):
        load_settings()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_becomes_the_drivers(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("BSS_SYNC_DATABASE_URL", f"{scheme}://me:secret@db/x")
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://me:secret@db/x"
    assert settings.owner_url == settings.database_url


def test_secrets_do_not_show_when_the_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_SYNC_DATABASE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("BSS_SYNC_MASTER_KEY", "hunter3")
    shown = repr(load_settings())
    assert "hunter" not in shown


def test_the_public_address_is_what_senders_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_SYNC_PUBLIC_URL", "https://sync.example.com/")
    assert load_settings().base_url == "https://sync.example.com"


def test_a_variable_of_the_test_suite_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_SYNC_TEST_ANYTHING", "1")
    assert load_settings().log_level == "info"


def test_the_default_file_says_what_the_code_says() -> None:
    import tomllib

    written = tomllib.loads((resource_folder("config") / "default.toml").read_text(encoding="utf-8"))
    without = {"home", "public_url", "database_url", "database_owner_url", "redis_url", "master_key", "config"}
    without |= {"metrics_bind", "otel_endpoint", "otel_headers", "alert_email_to", "alert_email_from"}
    without |= {"alert_smtp_url", "alert_webhook_url", "alert_webhook_secret"}
    fields = {name: field.default for name, field in Settings.model_fields.items()}
    assert set(written) == set(fields) - without - {"ownership_file"}
    assert written == {name: fields[name] for name in written}


def test_the_ownership_file_says_what_the_law_says() -> None:
    import tomllib

    assert (
        tomllib.loads((resource_folder("config") / "ownership.toml").read_text(encoding="utf-8")) == default_document()
    )


def test_every_setting_is_documented_and_nothing_else_is() -> None:
    rows = re.findall(r"^\| `(BSS_SYNC_[A-Z_]+)` \|", _DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [PREFIX + name.upper() for name in Settings.model_fields]
    assert all(field.description for field in Settings.model_fields.values())
