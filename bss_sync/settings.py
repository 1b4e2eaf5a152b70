"""The settings: ``BSS_SYNC_*`` in the environment over a TOML file (``BSS_SYNC_CONFIG``), else config/default.toml.

A wrong or unknown setting stops the start with a ConfigurationError whose message begins with the setting's name.
docs/settings.md lists every one; a test compares.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from bss_sync.domain.errors import ConfigurationError
from bss_sync.domain.retention import Retention
from bss_sync.resources import resource_folder

PREFIX = "BSS_SYNC_"
_FOR_TESTS = PREFIX + "TEST_"
"""The test suite's own variables: not the program's, so not unknown to it."""

_POSTGRES_DRIVER = "postgresql+psycopg://"
_POSTGRES_SCHEMES = ("postgresql://", "postgres://", _POSTGRES_DRIVER)
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def default_home() -> Path:
    """The platform's data folder; for root one that the embedded server's account can reach."""
    if os.geteuid() == 0:
        return Path("/var/lib/bss-sync")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "bss-sync"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "bss-sync"


class Settings(BaseSettings):
    """Everything that an installation may set. Frozen: a change needs a restart."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    home: Path = Field(
        default_factory=default_home,
        description="Folder of the embedded PostgreSQL and of the generated master key.",
    )
    bind: str = Field("127.0.0.1:8080", description="Address and port that the HTTP server listens on.")
    public_url: str | None = Field(
        None,
        description="Address under which senders reach the server, behind a proxy say; default: http:// and bind.",
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL that the program works on (a login role); empty: the embedded one in home."
    )
    database_owner_url: SecretStr | None = Field(
        None, description="The same database as its owner: migrations and partitions; default: database_url."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis for wake-ups between processes; empty: one process with a broker inside."
    )
    master_key: SecretStr | None = Field(
        None,
        description="Encrypts secrets at rest: 32 bytes in base64; several with commas: the first seals, all open. "
        "Empty: generated in home/master.key.",
    )
    config: Path | None = Field(None, description="TOML file with settings; the environment only can name it.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log entries.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log entries as JSON lines or as text; auto: text on a terminal, else JSON."
    )
    distributor_name: str = Field(
        "Distributor", min_length=1, max_length=255, description="Name of the distributor; used at the first start."
    )
    time_zone: str = Field("UTC", description="The distributor's time zone, for days; used at the first start.")
    currency: str = Field(
        "EUR", pattern="^[A-Z]{3}$", description="The distributor's currency, ISO 4217; used at the first start."
    )
    ownership_file: Path | None = Field(
        None, description="TOML file of the field-ownership policy for new connections; default: config/ownership.toml."
    )
    lease_seconds: float = Field(
        30, ge=1, le=3600, description="Seconds after which the work of a process that died is taken over."
    )
    worker_threads: int = Field(4, ge=1, le=64, description="Threads of a worker process.")
    database_pool_size: int = Field(8, ge=1, le=100, description="Connections per process and database role.")
    metrics_bind: str | None = Field(
        None, description="Address and port where worker and scheduler show /metrics; empty: they do not."
    )
    otel_endpoint: str | None = Field(
        None, description="Base address of an OpenTelemetry collector (OTLP over HTTP); empty: nothing is traced."
    )
    otel_headers: SecretStr | None = Field(
        None, description="Headers for the collector: NAME=VALUE pairs with commas between them."
    )
    otel_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of requests and batches that is traced.")
    deduplication_days: int = Field(
        90,
        ge=1,
        le=36_500,
        description="Days for which a message's id is remembered; older repeats fall to the version.",
    )
    message_days: int = Field(
        400, ge=1, le=36_500, description="Days for which a settled message is kept, from when it was settled."
    )
    history_days: int = Field(
        3653, ge=1, le=36_500, description="Days of the past about which questions are answered, and bills proven."
    )
    alert_rules: str = Field(
        "dead_letters,quarantined,silence,drift,stopped_run,held_back",
        description="Conditions that a person is told of, with commas between them.",
    )
    alert_email_to: str | None = Field(None, description="Who is told by e-mail: addresses with commas between them.")
    alert_email_from: str | None = Field(None, description="The sender's address of these e-mails.")
    alert_smtp_url: SecretStr | None = Field(
        None,
        description="The mail server: smtps://user:password@host:465, or smtp://host:587, which turns to TLS where the "
        "server offers it.",
    )
    alert_webhook_url: str | None = Field(None, description="Address that is told by a signed webhook.")
    alert_webhook_secret: SecretStr | None = Field(
        None, description="Signs these webhooks (Standard Webhooks): whsec_ and 24 to 64 bytes in base64."
    )
    alert_webhook_allow_http_private: bool = Field(
        False, description="Whether that address may be http, or in a private range."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the framework's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the framework's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over the environment over the file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _from_file())

    @field_validator("home", "ownership_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("bind", "metrics_bind")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be ADDRESS:PORT, such as 127.0.0.1:8080")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError("an IPv6 address stands in brackets, such as [::1]:8080")
        return value

    @field_validator("public_url", "otel_endpoint", "alert_webhook_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http or https address without ? and #, such as https://sync.example.com")
        return value.rstrip("/")

    @field_validator("database_url", "database_owner_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        address = value.get_secret_value()
        for scheme in _POSTGRES_SCHEMES:
            if address.startswith(scheme):
                return SecretStr(_POSTGRES_DRIVER + address.removeprefix(scheme))
        raise ValueError("must begin with postgresql://")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, OSError, ValueError):
            raise ValueError("is no time zone of this machine; write one like Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _owner_needs_database(self) -> Settings:
        if self.database_owner_url is not None and self.database_url is None:
            raise ValueError("database_owner_url: is set, but database_url is not; set both or neither")
        return self

    @model_validator(mode="after")
    def _alerts_have_their_way(self) -> Settings:
        groups = (
            ("alert_email_to", "alert_email_from", "alert_smtp_url"),
            ("alert_webhook_url", "alert_webhook_secret"),
        )
        for group in groups:
            missing = [name for name in group if getattr(self, name) is None]
            if 0 < len(missing) < len(group):
                raise ValueError(f"{missing[0]}: is needed as well; set {', '.join(group)}, or none of them")
        return self

    @model_validator(mode="after")
    def _kept_in_order(self) -> Settings:
        try:
            self.retention.check()
        except ConfigurationError as error:
            raise ValueError(error.detail) from None
        return self

    @property
    def retention(self) -> Retention:
        """How long what is no longer needed is kept."""
        return Retention(self.message_days, self.history_days, self.deduplication_days)

    @property
    def host(self) -> str:
        """The address of ``bind``, without brackets."""
        return self.bind.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of ``bind``; 0 lets the system choose."""
        return int(self.bind.rpartition(":")[2])

    @property
    def base_url(self) -> str:
        """The absolute address of the HTTP server, without a slash at its end."""
        return self.public_url or f"http://{self.bind}"

    @property
    def owner_url(self) -> SecretStr | None:
        """The owner's database address where a database is configured."""
        return self.database_owner_url or self.database_url


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process. ConfigurationError names the first wrong or unknown one.

    ``overrides`` take precedence over the environment (tests, options of the command line).
    """
    _refuse_unknown_variables()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise _named(error) from None


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        ours = variable.upper().startswith(PREFIX) and not variable.upper().startswith(_FOR_TESTS)
        if ours and variable.upper() not in known:
            raise ConfigurationError(
                f"{variable}: there is no such setting.",
                next_step="Correct or unset it; bss-sync doctor --settings lists every setting.",
            )


def _from_file() -> dict[str, Any]:
    """The settings of the TOML file."""
    named = os.environ.get(PREFIX + "CONFIG")
    path = Path(named).expanduser() if named else resource_folder("config") / "default.toml"
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{PREFIX}CONFIG: {path} cannot be read: {error}") from None
    if "config" in found:
        raise ConfigurationError(f"config: in {path} it has no effect; only the environment names the file.")
    for name in found:
        if name not in Settings.model_fields:
            raise ConfigurationError(
                f"{name}: there is no such setting (in {path}).",
                next_step="Correct or remove it; bss-sync doctor --settings lists every setting.",
            )
    return found


def _named(error: ValidationError) -> ConfigurationError:
    """The first problem, its message beginning with the setting's name. The value itself may be a secret."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    words = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        name, _, words = words.partition(": ")
    else:
        name = str(problem["loc"][0])
    return ConfigurationError(f"{PREFIX}{name.upper()}: {words[:1].lower()}{words[1:]}.")
