"""Settings of the service: environment variables with the prefix `MODEL_STORAGE_`."""

from __future__ import annotations

import hashlib
import ipaddress
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nightshift_common.names import NAME_RULE, is_name
from nightshift_common.storage_tokens import Scope
from services.model_storage.repository.examination import PythonModels
from services.model_storage.repository.keyless import Identity
from services.model_storage.repository.signatures import Policy, Signatures

MIN_TOKEN = 16
_EXAMPLE = '{"evaluate": {"token": "<at least 16 characters>", "scopes": ["read"]}}'


class Token(BaseModel):
    """A bearer token, by its SHA-256, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, given: Any) -> Any:
        """Take the token itself in the place of its SHA-256."""
        if not isinstance(given, dict) or "token" not in given:
            return given
        token = given["token"]
        if "sha256" in given:
            raise ValueError("give the token or its sha256, not both")
        if not isinstance(token, str) or len(token) < MIN_TOKEN:
            raise ValueError(f"a token of less than {MIN_TOKEN} characters could be guessed")
        rest = {key: value for key, value in given.items() if key != "token"}
        return rest | {"sha256": hashlib.sha256(token.encode()).hexdigest()}


class Settings(BaseSettings):
    """One variable a field, say `MODEL_STORAGE_PORT`; `MODEL_STORAGE_TOKENS` is JSON."""

    model_config = SettingsConfigDict(
        env_prefix="MODEL_STORAGE_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    repository: str = Field(
        min_length=1,
        description="Triton's model repository, a folder or s3://bucket/prefix; nothing but the service writes to it",
    )
    database_url: str = Field(description="postgresql://user:password@host:port/database")
    triton_grpc: str = Field(
        "127.0.0.1:8001",
        pattern=r"^[^\s,]+:\d+(\s*,\s*[^\s,]+:\d+)*$",
        description="gRPC address of the Triton on the repository, or of several: host:port,host:port",
    )
    triton_key_file: str = Field(
        "",
        description="file with the key that Triton's repository calls ask for, read at each call since a restarted "
        "Triton has another; of several servers one file each: path,path; empty: they ask for none",
    )
    triton_timeout: float = Field(120.0, gt=0, description="seconds that loading one model may take")
    picture_entries: Literal["on", "off"] = Field(
        "on",
        description="whether Triton serves an entry <model>_jpeg for each classifier, which takes encoded pictures: a "
        "Python process with OpenCV (some 100 MB of memory) for each",
    )
    mlflow_url: str = Field("", description="MLflow whose registry's aliases follow the stages; empty: none")
    mlflow_username: str = ""
    mlflow_password: str = ""
    tokens: dict[str, Token] = Field({}, description="name -> its token, or the token's sha256, and scopes")
    auth: Literal["on", "off"] = Field("on", description="off: everyone may do everything; on a loopback host only")
    host: str = "127.0.0.1"
    port: int = Field(8300, gt=0, lt=65536)
    signatures: Policy = Field(
        "warn",
        description="what happens to packages without a signature. off: signatures are not looked at; warn: they are "
        "taken, and the log says so; require: they are refused. Unless off, a signature that is there must hold",
    )
    public_keys: str = Field(
        "",
        description="public keys whose signatures are trusted: PEM texts one after another, or without their first and "
        "last lines, each in one line, separated by commas",
    )
    identities: list[Identity] = Field(
        [],
        description="who may sign without a key, by a certificate of Sigstore: JSON, a list of "
        '{"identity": "<an email address or the address of a workflow>", "identity_provider": "https://…"}',
    )
    trust_root: str = Field(
        "",
        description="file with the trusted root of the Sigstore instance that gives those certificates; empty: the "
        "public instance's, as the installed package sigstore has it. Nothing is fetched",
    )
    max_upload_bytes: int = Field(32 << 30, gt=0, description="size of one uploaded archive")
    max_unpacked_bytes: int = Field(64 << 30, gt=0, description="size of what is in one archive")
    python_models: PythonModels = Field(
        "off",
        description="whether packages may hold a model.py, code that Triton runs with Triton's rights: "
        "off: none; signed: packages that a trusted key has signed; on: everyone's who may publish",
    )
    max_latency_ms: float = Field(
        2000.0,
        gt=0,
        description="milliseconds that a version may take for one of its verified inputs (median) to be promoted; a "
        "promotion may say another limit",
    )
    keep_days: float = Field(
        30.0,
        ge=0,
        description="days after its publication in which a version is kept, unless the call says others",
    )
    min_free_bytes: int = Field(
        512 << 20,
        ge=0,
        description="free space of a repository that is a folder below which the service is not ready: before the disk "
        "is full",
    )
    stale_seconds: float = Field(
        3600.0,
        ge=0,
        description="how long after PostgreSQL was last heard of clients are told what was in production then",
    )
    watch_seconds: float = Field(
        15.0, gt=0, description="how often to see that Triton serves the champions: a restarted one serves nothing"
    )

    @field_validator("tokens", mode="before")
    @classmethod
    def _have_names(cls, given: Any) -> Any:
        """Refuse what earlier releases took, and names that cannot stand in the history; no message shows a token."""
        if not isinstance(given, dict):
            return given
        if any(isinstance(value, list) for value in given.values()):
            raise ValueError(f"tokens have names now: instead of '<token>': [<scopes>] write {_EXAMPLE}")
        if not all(isinstance(name, str) and is_name(name) for name in given):
            raise ValueError(f"a token's name has {NAME_RULE}; say {_EXAMPLE}")
        return given

    @model_validator(mode="after")
    def _someone_may_do_something(self) -> Settings:
        if self.auth == "off" and not _is_loopback(self.host):
            raise ValueError(
                f"MODEL_STORAGE_AUTH=off is for a loopback address only, and MODEL_STORAGE_HOST is {self.host}"
            )
        if self.auth == "on" and not self.tokens:
            raise ValueError(
                f"MODEL_STORAGE_TOKENS is empty, so nobody could do anything: set it, say {_EXAMPLE}, or set "
                "MODEL_STORAGE_AUTH=off on a loopback address"
            )
        if self.triton_key_file and len(self.triton_servers()) != self.triton_key_file.count(",") + 1:
            raise ValueError(
                f"MODEL_STORAGE_TRITON_KEY_FILE={self.triton_key_file!r} must name one file for each address of "
                f"MODEL_STORAGE_TRITON_GRPC={self.triton_grpc!r}"
            )
        if len({token.sha256 for token in self.tokens.values()}) < len(self.tokens):
            raise ValueError("MODEL_STORAGE_TOKENS has one token under two names: who used it could not be told")
        try:
            _ = self.trusted  # made now, once, so that what is wrong with it is said at the start
        except ValueError as error:
            where = "MODEL_STORAGE_PUBLIC_KEYS, MODEL_STORAGE_IDENTITIES and MODEL_STORAGE_TRUST_ROOT"
            raise ValueError(f"{where}, with MODEL_STORAGE_SIGNATURES={self.signatures}: {error}") from error
        return self

    @cached_property
    def trusted(self) -> Signatures:
        """Whose signatures count."""
        trust_root = Path(self.trust_root) if self.trust_root else None
        return Signatures(self.signatures, self.public_keys, self.identities, trust_root)

    def triton_servers(self) -> list[tuple[str, Path | None]]:
        """Return the gRPC address of each Triton and the file of its key."""
        addresses = [part.strip() for part in self.triton_grpc.split(",")]
        files = [Path(part.strip()) for part in self.triton_key_file.split(",")] if self.triton_key_file else []
        return list(zip_longest(addresses, files))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
