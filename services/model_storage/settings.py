"""Settings of the service: environment variables with the prefix `MODEL_STORAGE_`."""

from __future__ import annotations

import ipaddress
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.model_storage.repository.signatures import Policy, Signatures

Scope = Literal["read", "publish", "promote"]


class Settings(BaseSettings):
    """One variable a field, say `MODEL_STORAGE_PORT`; `MODEL_STORAGE_TOKENS` is JSON."""

    model_config = SettingsConfigDict(env_prefix="MODEL_STORAGE_", extra="ignore", frozen=True)

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
    mlflow_url: str = Field("", description="MLflow whose registry's aliases follow the stages; empty: none")
    mlflow_username: str = ""
    mlflow_password: str = ""
    tokens: dict[str, list[Scope]] = Field({}, description="bearer token -> what it may do")
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
    max_upload_bytes: int = Field(32 << 30, gt=0, description="size of one uploaded archive")
    max_unpacked_bytes: int = Field(64 << 30, gt=0, description="size of what is in one archive")
    watch_seconds: float = Field(
        15.0, gt=0, description="how often to see that Triton serves the champions: a restarted one serves nothing"
    )

    @model_validator(mode="after")
    def _someone_may_do_something(self) -> Settings:
        if self.auth == "off" and not _is_loopback(self.host):
            raise ValueError(
                f"MODEL_STORAGE_AUTH=off is for a loopback address only, and MODEL_STORAGE_HOST is {self.host}"
            )
        if self.auth == "on" and not self.tokens:
            raise ValueError(
                'MODEL_STORAGE_TOKENS is empty, so nobody could do anything: set it, say {"<token>": ["read", '
                '"publish", "promote"]}, or set MODEL_STORAGE_AUTH=off on a loopback address'
            )
        if self.triton_key_file and len(self.triton_servers()) != self.triton_key_file.count(",") + 1:
            raise ValueError(
                f"MODEL_STORAGE_TRITON_KEY_FILE={self.triton_key_file!r} must name one file for each address of "
                f"MODEL_STORAGE_TRITON_GRPC={self.triton_grpc!r}"
            )
        try:
            Signatures(self.signatures, self.public_keys)
        except ValueError as error:
            where = f"MODEL_STORAGE_PUBLIC_KEYS, with MODEL_STORAGE_SIGNATURES={self.signatures}"
            raise ValueError(f"{where}: {error}") from error
        if any(len(token) < 16 for token in self.tokens):
            raise ValueError("MODEL_STORAGE_TOKENS has a token of less than 16 characters: it could be guessed")
        return self

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
