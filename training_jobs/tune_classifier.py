"""Search for hyperparameters: `python -m training_jobs.tune_classifier --search_filename FILE [--cat GROUP …]`."""

from __future__ import annotations

import csv
import io
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.experiment_claim import training_digest
from jobkit.files import write_atomic
from jobkit.paths import checked_name
from jobkit.tracking import Run
from training_jobs.train_classifier import Arguments as TrainingArguments
from training_jobs.train_classifier import Task, task_of

if TYPE_CHECKING:
    from optuna import Study, Trial

    from training_jobs.classifier.search_space import Search
    from training_jobs.classifier.training_callback import Row

logger = logging.getLogger("training_jobs.tune_classifier")
FAILURES = 3  # trials that fail one after another: then it is not the parameters


class Arguments(job.Arguments):
    """Search for the hyperparameters of a classifier with Optuna, within a budget; go on where the last call ended.

    Each trial is a training of the configuration with other values; the score is `training.best_by` of its best epoch
    on the validation split. The study lies in PostgreSQL, or in a file. What was found is a configuration file.
    """

    search_filename: Path = Field(description="the search file: docs/tuning.md")
    cat: str | None = Field(None, description="group of the snapshot; default: the configuration's experiment_name")
    snapshot_id: str | None = Field(None, description="the snapshot to train on")
    trials: int | None = Field(None, ge=1, le=10_000, description="trainings of this call, at most")
    minutes: float | None = Field(None, gt=0, description="time of this call, at most")
    study: str | None = Field(None, description="the study's name; default: the file's, else by group and content")
    study_file: Path | None = Field(
        None, description="keep the study in this SQLite file; default: in PostgreSQL (NIGHTSHIFT_DATABASE_URL)"
    )
    output: Path | None = Field(None, description="write the best configuration here, too")


class Result(job.Result):
    """What the study knows after this call."""

    study: str
    trials: int = Field(description="of this call")
    finished_trials: int = Field(description="of all calls, those that were pruned included")
    best_score: float | None
    best_parameters: dict[str, Any]
    config: str | None = Field(description="the best configuration: its key in the bottle")


class OutOfTime(Exception):
    """The call's time is over within a trial."""


def run(arguments: Arguments, context: job.Context) -> Result:
    """Train with one set of values after another until the budget is used up."""
    from training_jobs.classifier import study as studies
    from training_jobs.classifier.search_space import read_search
    from training_jobs.classifier.training_callback import BEST

    search = read_search(arguments.search_filename)
    task = task_of(search.base, TrainingArguments(cat=arguments.cat, snapshot_id=arguments.snapshot_id), context)
    content = training_digest(
        search.base.model_dump(mode="json"), search.file.model_dump(mode="json")["parameters"], task.group,
        task.snapshot_id,
    )  # fmt: skip
    name = checked_name(arguments.study or search.file.study or f"{task.group}-{content}", "study")
    tuner = Tuner(search, task, name, context)
    more_is_better = BEST[search.base.training.best_by][1] > 0
    pruner = studies.pruner_of(search.file.pruner, search.base.training.epochs)
    with studies.opened(name, content, arguments.study_file, more_is_better, pruner, search.base.seed) as study:
        for dead in studies.fail_the_dead(study):
            tuner.end_run_of(dead.user_attrs)
        done = tuner.search_on(study, arguments.trials or search.file.trials, arguments.minutes or search.file.minutes)
        return tuner.conclude(study, done, arguments.output)


class Tuner:
    """Runs the trials of a study."""

    def __init__(self, search: Search, task: Task, name: str, context: job.Context) -> None:
        from training_jobs.classifier.training_callback import BEST

        self.search, self.task, self.name, self.context = search, task, name, context
        self.examples = task.examples()
        self.metric = BEST[search.base.training.best_by][0]

    def search_on(self, study: Study, trials: int, minutes: float | None) -> int:
        """Run trials until there are so many more, or the time is over; return how many there were.

        None is begun for which the time that the longest one took is not left.
        """
        deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
        longest, failures = 0.0, 0
        for done in range(trials):
            started = time.monotonic()
            if started + longest > deadline:
                logger.info("the time is over after %d trials", done)
                return done
            try:
                finished = self._trial(study, deadline)
                failures = 0
            except OutOfTime:
                return done
            except (ConfigurationError, DataValidationError) as error:
                failures, finished = failures + 1, False
                logger.warning("a trial failed: %s", error)
                if failures == FAILURES:
                    raise
            if finished:
                longest = max(longest, time.monotonic() - started)
        return trials

    def _trial(self, study: Study, deadline: float) -> bool:
        """Run one trial; return whether it trained to its end.

        One that a signal ends stays as it is: the next call finds it as that of a killed job.
        """
        import optuna
        from optuna.trial import TrialState

        from training_jobs.classifier.study import try_again

        trial = study.ask(self.search.distributions)
        run = self._run_of(trial)
        logger.info("trial %d: %s", trial.number, trial.params)
        state, score = TrialState.FAIL, None
        try:
            score = self._train(trial, run, deadline)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Exception as error:
            study.tell(trial, state=TrialState.FAIL)
            if isinstance(error, OutOfTime | TransientError):
                try_again(study, study.trials[trial.number])
            _end(run, state)
            raise
        study.tell(trial, score, state=state)
        _end(run, state)
        if score is None:
            logger.info("trial %d is pruned: it falls behind", trial.number)
        else:
            logger.info("trial %d: %s %.4f, best so far %.4f", trial.number, self.metric, score, study.best_value)
        return score is not None

    def _train(self, trial: Trial, run: Run | None, deadline: float) -> float:
        """Train with the values of a trial; return the score of its best epoch. What it writes is thrown away."""
        import optuna

        from training_jobs.classifier.training import fit
        from training_jobs.classifier.training_callback import TrainingCallback

        def watch(row: Row) -> None:
            trial.report(row[self.metric], step=int(row["epoch"]))
            if time.monotonic() > deadline:
                raise OutOfTime
            if trial.should_prune():
                raise optuna.TrialPruned

        config = self.search.config(trial.params)
        training = config.training.model_copy(update={"save_checkpoints": False})
        config = config.model_copy(update={"training": training})
        experiment = Experiment(f"models/{self.task.group}/tuning_{self.name}_{trial.number}")
        with tempfile.TemporaryDirectory(prefix="nightshift-trial-") as scratch:
            journal = TrainingCallback(config, FolderBottle(Path(scratch)), experiment, run, watch)
            fit(config, self.examples, self.task.bottle, experiment, journal)
        return float(journal.best[self.metric])

    def _run_of(self, trial: Trial) -> Run | None:
        """Return a run in MLflow for a trial, a child of the job's."""
        from training_jobs.classifier.study import RUN

        if not self.context.is_tracked:
            return None
        run = self.context.tracking.child(f"{self.name} trial {trial.number}")
        trial.set_user_attr(RUN, run.run_id)
        run.params(trial.params)
        return run

    def end_run_of(self, attributes: dict[str, Any]) -> None:
        """End the run in MLflow of a trial whose job was killed."""
        from training_jobs.classifier.study import RUN

        if self.context.is_tracked and RUN in attributes:
            mine = self.context.tracking
            Run(mine.client, attributes[RUN], mine.experiment_id, mine.run_id).killed()

    def conclude(self, study: Study, done: int, output: Path | None) -> Result:
        """Write the table of all trials and the best configuration; return what is known."""
        from optuna.trial import TrialState

        from training_jobs.classifier.search_space import as_file

        bottle, folder = self.task.bottle, f"tuning/{self.task.group}/{self.name}"
        bottle.write(f"{folder}/trials.csv", self._table(study))
        finished = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        result = Result(
            study=self.name,
            trials=done,
            finished_trials=len(finished),
            best_score=None,
            best_parameters={},
            config=None,
        )
        if not any(trial.state == TrialState.COMPLETE for trial in finished):
            logger.warning("no trial has trained to its end yet: call again, with more time")
            return result
        best, parameters = study.best_trial, self.search.file.parameters
        text = as_file(self.search.config(best.params))
        bottle.write(f"{folder}/best.yaml", text)
        if output is not None:
            write_atomic(output, text)
        values = {name: parameters[name].value(value) for name, value in best.params.items()}
        if self.context.is_tracked:
            tracking = self.context.tracking
            tracking.tags({"study": self.name, "best_trial": best.number})
            tracking.metrics({f"best_{self.metric}": study.best_value})
            tracking.dictionary(values, "best_parameters.json")
        logger.info("best of %d: %s %.4f with %s", len(finished), self.metric, study.best_value, values)
        return result.model_copy(
            update={"best_score": study.best_value, "best_parameters": values, "config": f"{folder}/best.yaml"}
        )

    def _table(self, study: Study) -> str:
        """Return all trials, a row each."""
        names = list(self.search.file.parameters)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["trial", "state", "score", "epochs", "seconds", *names])
        for trial in study.trials:
            seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
            chosen = [trial.params.get(name, "") for name in names]
            table.writerow(
                [trial.number, trial.state.name, trial.value, len(trial.intermediate_values), seconds, *chosen]
            )
        return text.getvalue()


def _end(run: Run | None, state: Any) -> None:
    """End a trial's run in MLflow; one that was pruned is no failure."""
    if run is not None:
        run.tags({"optuna.state": state.name})
        run.end(succeeded=state.name != "FAIL")


if __name__ == "__main__":
    job.main(Arguments, run)
