"""The local stack's command line, called by make: `python -m local --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local import job_environment, new_pipeline, postgres, stack
from local.airflow import ADMIN, run_url
from local.components import triton_server
from local.pipelines import served_model
from local.run import Retraining, ask_about, ask_served_model, retrain
from local.settings import HOST, ROOT, LocalStackError, Settings
from nightshift_common.storage_tokens import OPERATOR

# Where the output goes to a file or a pipe, lines are not folded at 80 columns.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def main() -> None:
    """Run one command; a LocalStackError is shown as it is and ends with exit code 1."""
    parser = argparse.ArgumentParser(prog="nightshift", description="Nightshift on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the stack and leave it running")
    commands.add_parser("down", help="stop every process of the stack; its state is kept")
    commands.add_parser("status", help="say what is running, and where")
    commands.add_parser("env", help="print what jobs started by hand need, for a shell to take")
    commands.add_parser("clean", help="stop the stack and remove its database")
    new = commands.add_parser("new-pipeline", help="write the files of a new pipeline")
    for name in ("name", "group", "model-name", "description", "owner", "schedule"):
        new.add_argument(f"--{name}")
    predict = commands.add_parser("predict", help="ask a served model about a picture")
    predict.add_argument("--model", default="", help="its name in Triton")
    predict.add_argument("--picture", default="", help="a file, or its http:// or https:// address")
    part = commands.add_parser("part")  # for the supervisor
    part.add_argument("name")
    run = commands.add_parser("run", help="start the stack, retrain, show the result")
    run.add_argument(
        "--once", action="store_true", help="stop everything at the end; exit 0 only if the model is served"
    )
    run.add_argument("--pipeline", default="digits", help="which pipeline to retrain (default: digits)")
    run.add_argument("--force", action="store_true", help="train even if there are no new pictures")
    options = parser.parse_args()
    if options.command == "part":
        stack.become(options.name)
    settings = Settings()
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(_run_command(options, settings))
    except LocalStackError as error:
        console.print(
            f"[red]{error}[/]" if console.is_terminal else str(error), markup=console.is_terminal, soft_wrap=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _run_command(options: argparse.Namespace, settings: Settings) -> int:
    if options.command == "up":
        stack.up(settings, console.print)
        _show_addresses(settings)
    elif options.command == "down":
        stack.down(settings, console.print)
    elif options.command == "clean":
        stack.down(settings, console.print)
        postgres.remove(settings.state / "postgres")  # also where it is kept outside of the state folder
    elif options.command == "env":
        print(job_environment.shell(settings))
    elif options.command == "new-pipeline":
        _show_new_pipeline(new_pipeline.create({k: v for k, v in vars(options).items() if k != "command"}))
    elif options.command == "status":
        return _show_status(settings)
    elif options.command == "predict":
        _show_answer(ask_about(settings, options.model, options.picture))
    else:
        return _retrain(options, settings)
    return 0


def _show_new_pipeline(files: list[Path]) -> None:
    for path in files:
        console.print(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", soft_wrap=True)
    name = files[-1].stem
    console.print(
        f'The DAG retrain_{name} is in Airflow within seconds; to run it here: make run ARGS="--pipeline {name}"'
    )
    console.print(new_pipeline.golden_plan(), markup=False, highlight=False, soft_wrap=True)


def _show_status(settings: Settings) -> int:
    states = list(stack.status(settings))
    table = Table(box=None, padding=(0, 2), show_header=False)
    for row in states:
        table.add_row(*row)
    console.print(table)
    return 0 if all(state == "healthy" for _, state, _ in states) else 3  # 3: "not running", as in systemctl's status


def _retrain(options: argparse.Namespace, settings: Settings) -> int:
    once = options.once or not sys.stdout.isatty()
    model = served_model(options.pipeline)  # before anything is started
    served = False
    before = stack.running(settings)
    done = Event()
    try:
        stack.up(settings, console.print)
        Thread(target=stack.watch, args=(settings, console.print, done), daemon=True).start()
        conf = {"force": True} if options.force else {}
        finished = retrain(settings, f"retrain_{options.pipeline}", conf, console)
        served = _summarize(settings, finished, model)
        _show_addresses(settings)
        if not once:
            console.print("\nThe stack stays up until Ctrl-C.")
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        console.print("\nstopping …")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        done.set()
        stack.down(settings, console.print, keep=before)
    return 0 if served else 1


def _summarize(settings: Settings, finished: Retraining, model: str) -> bool:
    """Print what the run came to; return whether its model is served."""
    results = finished.results
    pulled, evaluated, gate = (results.get(task, {}) for task in ("pull_dataset", "evaluate", "gate"))
    published, deployed = results.get("publish_model", {}), results.get("deploy_model", {})
    rows: dict[str, Any] = {"run": f"{finished.state} in {finished.seconds:.0f} s"}
    if finished.failed:
        lines = [f"{task}: {reason}" if reason else task for task, reason in finished.failed.items()]
        rows["failed"] = "\n".join([*lines, run_url(settings, finished.dag_id, finished.run_id)])
    if pulled:
        rows["snapshot"] = f"{pulled['snapshot_id']}: {pulled['pictures']} pictures, {len(pulled['labels'])} classes"
        if pulled.get("stop_here"):
            rows["outcome"] = pulled["stop_here"]["reason"]
    if metrics := (evaluated.get("candidate") or {}).get("metrics"):
        rows["golden set"] = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    if gate:
        rows["gate"] = "\n".join([gate["sentence"], *gate["reasons"]])
    if published:
        rows["published"] = f"version {published['version']}"
    if deployed:
        stopped = deployed.get("stop_here")
        rows["deployed"] = (
            stopped["reason"] if stopped else f"version {deployed['version']}, {deployed['latency_ms']} ms"
        )
    answer = None
    if finished.state == "success" and pulled:
        answer = ask_served_model(settings, model, pulled["group"], pulled["snapshot_id"])
        said = f"{answer['label']!r} with {answer['probability']:.1%}" if answer["label"] is not None else "nothing"
        rows["Triton says"] = (
            f"{answer['picture']} is {said}, truth: {answer['truth']!r}, "
            f"version {answer['version']}, {answer['milliseconds']:.1f} ms"
        )
    console.print(_two_columns(rows))
    return answer is not None


def _show_answer(answer: dict[str, Any]) -> None:
    found = answer["classes"] or [{"label": box["label"], "probability": box["score"]} for box in answer["boxes"] or []]
    where = f"version {answer['version']}, {answer['milliseconds']:.1f} ms"
    console.print(f"{answer['picture']}: {answer['label'] or 'nothing'} ({where})", markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2), show_header=False)
    for entry in found:
        share = float(entry["probability"])
        table.add_row(escape(str(entry["label"])), f"{share:.1%}", "█" * round(share * 30))
    console.print(table)


def _show_addresses(settings: Settings) -> None:
    rows = {
        "Airflow": f"{settings.url('airflow')}  (login {ADMIN}, password {settings.secrets['airflow_admin']})",
        "MLflow": f"{settings.url('mlflow')}/#/experiments",
        "model storage": f"{settings.url('model_storage')}/docs",
        "collect": f"{settings.url('collect')}/docs",
        "Triton": f"{HOST}:{triton_server(settings).http_port} (HTTP), {HOST}:{settings.port('triton_grpc')} (gRPC)",
        "state, logs": f"{settings.state}",
        "tokens": f"{settings.state / 'secrets.json'}  (of the model storage: model_storage_{OPERATOR}); "
        'for jobs by hand: eval "$(make env)"',
    }
    console.print(_two_columns(rows))


def _two_columns(rows: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))  # a path or a reason may hold brackets
    return table


if __name__ == "__main__":
    main()
