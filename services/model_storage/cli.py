"""The model storage from the command line: `python -m services.model_storage.cli --help`.

The address and the token are `NIGHTSHIFT_STORAGE_URL` and `NIGHTSHIFT_STORAGE_TOKEN`, the variables that jobs have too.
Exit codes: 0 done; 1 refused, the message says why; 75 (EX_TEMPFAIL) the storage does not answer for now.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from nightshift_common.exit_codes import ExitCode
from nightshift_common.model_storage_client import ModelStorageClient, StorageRefused, StorageUnavailable, checksum
from services.model_storage.importing import import_repository

URL, TOKEN = "NIGHTSHIFT_STORAGE_URL", "NIGHTSHIFT_STORAGE_TOKEN"

console = Console()
errors = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with ModelStorageClient(options.url, os.environ.get(TOKEN, "")) as client:
            answer = options.run(client, options)
    except (StorageRefused, StorageUnavailable, OSError) as error:
        errors.print(str(error), style="red", markup=False)
        return int(ExitCode.TRANSIENT) if isinstance(error, StorageUnavailable) else 1
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        options.show(answer)
    return 1 if options.run is import_copy and any("refused" in row["outcome"] for row in answer) else 0


def upload(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Publish an archive, with its checksum."""
    with _progress("checksum", options.archive) as bar:
        sha256 = checksum(options.archive, bar)
    with _progress("upload", options.archive) as bar:
        return client.upload(options.model, options.archive, options.version, sha256, bar)


def list_versions(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Return the versions of a model, or the names of all models."""
    return client.models() if options.model is None else client.versions(options.model)


def get(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Download a version, by default the one in production."""
    version = options.version or client.champion(options.model)["version"]
    target: Path = options.output or Path(f"{options.model}-{version}.zip")
    total = sum(file["size"] for file in client.version(options.model, version)["files"].values())
    with _progress("download", total) as bar:
        client.download(options.model, version, target, bar, options.as_signed)
    return {"file": str(target), "version": version}


def promote(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Bring a version into production."""
    return client.promote(
        options.model, options.version, force=options.force, reason=options.reason, on_behalf_of=getpass.getuser()
    )


def canary(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Start a canary, end it, or return what the one under way has shown."""
    if options.end:
        client.end_canary(options.model)
        return {"model": options.model, "says": "ended by hand"}
    if options.version is not None:
        rules = (
            {} if options.expected_disagreement is None else {"expected_disagreement": options.expected_disagreement}
        )
        client.start_canary(
            options.model, options.version, rules, reason=options.reason, on_behalf_of=getpass.getuser()
        )
    return client.canary(options.model)


def pin(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Bring a version into production and keep it there."""
    return client.pin(options.model, options.version, reason=options.reason, on_behalf_of=getpass.getuser())


def unpin(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Let other versions come into production again."""
    return client.unpin(options.model, getpass.getuser())


def rollback(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Go back to the version that was in production before."""
    return client.rollback(options.model, reason=options.reason, on_behalf_of=getpass.getuser())


def stages(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Return which version is in which stage."""
    return client.stages(options.model)


def history(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Return what was in production when."""
    return client.history(options.model, options.at)


def clean(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Delete the versions that nothing needs, of one model or of all."""
    models = client.models() if options.model is None else [options.model]
    return [client.clean(model, options.older_than_days, options.dry_run) for model in models]


def import_copy(client: ModelStorageClient, options: argparse.Namespace) -> Any:
    """Publish what a copy of an older service's repository holds."""
    return [dataclasses.asdict(row) for row in import_repository(client, options.folder, options.promote)]


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
    _show_table(answer, ("version", "triton_version", "target", "created_at", "published_by", "signed_by", "sha256"))


def _show_stages(answer: dict[str, Any]) -> None:
    names = ("champion", "previous", "canary", "candidate")
    rows = [{"target": target, **dict.fromkeys(names), **found} for target, found in answer["stages"].items()]
    _show_table(rows, ("target", *names))
    console.print(f"pinned: {answer['pinned'] or 'none'}", markup=False)


def _show_canary(answer: dict[str, Any]) -> None:
    evidence = answer.pop("evidence", None)
    _show_one(answer)
    if evidence:
        rows = [
            {key: f"{side['bad']} of {side['count']}" for key, side in found.items() if isinstance(side, dict)}
            | {key: value for key, value in found.items() if not isinstance(value, dict)}
            for found in evidence["findings"]
        ]
        _show_table(rows, ("criterion", "canary", "champion", "excess", "excess_below", "e_value"))
        console.print(evidence["says"], markup=False)


def _show_history(answer: list[dict[str, Any]]) -> None:
    columns = ("promoted_at", "action", "version", "previous_version", "actor", "on_behalf_of", "reason", "run_id")
    _show_table(answer, (*columns, "snapshot_id"))


def _show_cleaned(answer: list[dict[str, Any]]) -> None:
    for found in answer:
        what = "would be deleted" if found["dry_run"] else "deleted"
        deleted = ", ".join(found["deleted"]) or "nothing"
        console.print(f"{found['model']}: {what}: {deleted} ({found['freed_bytes'] >> 20} MiB)", markup=False)
        for version, why in found["kept"].items():
            console.print(f"  {version} is kept: {why}", markup=False)


def _show_imported(answer: list[dict[str, Any]]) -> None:
    _show_table(answer, ("model", "folder", "version", "outcome", "in_production"))
    outcomes = Counter(row["outcome"].partition(":")[0] for row in answer)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "no versions", markup=False)


def _show_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.model_storage.cli", description=__doc__)
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
    added.add_argument("--as_signed", action="store_true", help="the files as they were signed: docs/security.md")
    added = command("promote", promote, _show_one, "bring a version into production")
    added.add_argument("model")
    added.add_argument("version")
    added.add_argument("--reason", default="by hand")
    added.add_argument("--force", action="store_true", help="although it has another interface or is not proved")
    added = command("canary", canary, _show_canary, "start a canary, end it, or tell what the one under way has shown")
    added.add_argument("model")
    added.add_argument("version", nargs="?", help="start this one; left out: tell")
    added.add_argument("--end", action="store_true", help="take it back")
    added.add_argument("--expected_disagreement", type=float, help="what evaluation predicts, say 0.03")
    added.add_argument("--reason", default="by hand")
    added = command("pin", pin, _show_one, "bring a version into production and keep it there")
    added.add_argument("model")
    added.add_argument("version")
    added.add_argument("--reason", default="by hand")
    added = command("unpin", unpin, _show_one, "let other versions come into production again")
    added.add_argument("model")
    added = command("stages", stages, _show_stages, "which version is champion, previous, canary, candidate")
    added.add_argument("model")
    added = command("rollback", rollback, _show_one, "go back to the version that was in production before")
    added.add_argument("model")
    added.add_argument("--reason", default="by hand")
    added = command("history", history, _show_history, "which version was in production when")
    added.add_argument("model")
    added.add_argument("--at", help="what was in production at this time, say 2026-11-17T03:00+01:00")
    added = command("clean", clean, _show_cleaned, "delete versions that nothing needs, of one model or of all")
    added.add_argument("model", nargs="?")
    added.add_argument("--older_than_days", type=float, help="default: MODEL_STORAGE_KEEP_DAYS of the service")
    added.add_argument("--dry_run", action="store_true", help="only tell which")
    added = command("import", import_copy, _show_imported, "publish what a copy of an older service's repository holds")
    added.add_argument("folder", type=Path, help="the copy: <model>/<number>/..., <model>/config.pbtxt")
    added.add_argument(
        "--promote", action="store_true", help="bring the versions that its config.pbtxt name into production, too"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
