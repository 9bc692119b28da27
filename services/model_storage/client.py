"""The model storage from the command line: `python -m services.model_storage.client --help`.

The address and the token are `NIGHTSHIFT_STORAGE_URL` and `NIGHTSHIFT_STORAGE_TOKEN`, the variables that jobs have too.
Exit codes: 0 done; 1 refused, the message says why; 75 (EX_TEMPFAIL) the storage does not answer for now.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

URL, TOKEN = "NIGHTSHIFT_STORAGE_URL", "NIGHTSHIFT_STORAGE_TOKEN"
TRY_AGAIN_LATER = 75
CHUNK = 1 << 20

console = Console()
errors = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    token = os.environ.get(TOKEN, "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = httpx.Timeout(300, connect=10)  # a promotion answers when the model is loaded
    try:
        with httpx.Client(base_url=options.url, headers=headers, timeout=timeout) as client:
            answer = options.run(client, options)
    except httpx.HTTPStatusError as error:
        errors.print(f"{error.response.status_code}: {_detail(error.response)}", style="red", markup=False)
        return TRY_AGAIN_LATER if error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE else 1
    except httpx.HTTPError as error:
        errors.print(f"the model storage {options.url} does not answer: {error}", style="red", markup=False)
        return TRY_AGAIN_LATER
    except OSError as error:
        errors.print(str(error), style="red", markup=False)
        return 1
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        options.show(answer)
    return 0


def upload(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Publish an archive, with its checksum."""
    with options.archive.open("rb") as handle, _progress("checksum", options.archive) as bar:
        digest = hashlib.sha256()
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            bar(len(chunk))
    form = {"model_name": options.model, "model_version": options.version, "sha256": digest.hexdigest()}
    with options.archive.open("rb") as handle, _progress("upload", options.archive) as bar:
        files = {"src_file": (options.archive.name, _Counted(handle, bar))}
        return _checked(client.post("/upload_new_version/", data=form, files=files))  # type: ignore[arg-type]


def list_versions(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Return the versions of a model, or the names of all models."""
    if options.model is None:
        return _checked(client.get("/models"))
    return _checked(client.get(f"/models/{quote(options.model)}/versions"))


def get(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Download a version; the file is there completely or not at all."""
    if options.version is None:
        options.version = _checked(client.get(f"/models/{quote(options.model)}/champion"))["version"]
    base = f"/models/{quote(options.model)}/versions/{quote(options.version)}"
    version = _checked(client.get(base))
    target: Path = options.output or Path(f"{options.model}-{options.version}.zip")
    partial = target.with_name(f".{target.name}.part")
    total = sum(file["size"] for file in version["files"].values())
    try:
        with client.stream("GET", f"{base}/archive") as reply, partial.open("wb") as output:
            if reply.is_error:
                reply.read()
            reply.raise_for_status()
            with _progress("download", total) as bar:
                for chunk in reply.iter_bytes(CHUNK):
                    output.write(chunk)
                    bar(len(chunk))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return {"file": str(target), "version": options.version}


def promote(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Bring a version into production."""
    path = f"/models/{quote(options.model)}/versions/{quote(options.version)}/promote"
    return _checked(client.post(path, json=_note(options)))


def rollback(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Go back to the version that was in production before."""
    return _checked(client.post(f"/models/{quote(options.model)}/rollback", json=_note(options)))


def history(client: httpx.Client, options: argparse.Namespace) -> Any:
    """Return what was in production when."""
    return _checked(client.get(f"/history/{quote(options.model)}", params={"at": options.at} if options.at else {}))


def _note(options: argparse.Namespace) -> dict[str, str]:
    return {"reason": options.reason, "actor": getpass.getuser()}


def _checked(reply: httpx.Response) -> Any:
    reply.raise_for_status()
    return reply.json()


def _detail(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return reply.text


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, handle: Any, count: Callable[[int], None]) -> None:
        self._handle, self._count = handle, count

    def read(self, size: int = -1) -> bytes:
        """Read; httpx asks for 64 KiB at a time, which larger blocks make faster."""
        data: bytes = self._handle.read(max(size, CHUNK) if size > 0 else size)
        self._count(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextmanager
def _progress(what: str, of: Path | int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields what to tell each amount of bytes."""
    columns = ("{task.description:9}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=of.stat().st_size if isinstance(of, Path) else of)
        yield lambda amount: bar.advance(task, amount)


def _show_one(answer: dict[str, Any]) -> None:
    console.print(", ".join(f"{key}: {value}" for key, value in answer.items()), markup=False)


def _show_versions(answer: list[Any]) -> None:
    if not answer or isinstance(answer[0], str):
        console.print("\n".join(answer) or "no models yet", markup=False)
        return
    _show_table(answer, ("version", "triton_version", "target", "created_at", "sha256"))


def _show_history(answer: list[dict[str, Any]]) -> None:
    columns = ("promoted_at", "action", "version", "previous_version", "actor", "reason", "run_id", "snapshot_id")
    _show_table(answer, columns)


def _show_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.model_storage.client", description=__doc__)
    parser.add_argument("--url", default=os.environ.get(URL) or "http://localhost:8300", help=f"default: {URL}")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[..., Any], show: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, show=show)
        return added

    added = command("upload", upload, _show_one, "publish a flat zip as a version")
    added.add_argument("model")
    added.add_argument("archive", type=Path)
    added.add_argument("--version", default="next", help="say 0.0.2; default: the next one")
    added = command("list", list_versions, _show_versions, "the models, or the versions of a model")
    added.add_argument("model", nargs="?")
    added = command("get", get, _show_one, "download a version")
    added.add_argument("model")
    added.add_argument("version", nargs="?", help="default: the one in production")
    added.add_argument("--output", type=Path, help="default: <model>-<version>.zip")
    added = command("promote", promote, _show_one, "bring a version into production")
    added.add_argument("model")
    added.add_argument("version")
    added.add_argument("--reason", default="by hand")
    added = command("rollback", rollback, _show_one, "go back to the version that was in production before")
    added.add_argument("model")
    added.add_argument("--reason", default="by hand")
    added = command("history", history, _show_history, "which version was in production when")
    added.add_argument("model")
    added.add_argument("--at", help="what was in production at this time, say 2026-11-17T03:00+01:00")
    return parser


if __name__ == "__main__":
    sys.exit(main())
