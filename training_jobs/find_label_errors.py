"""Find labels that are probably wrong, and write a queue of them for people to review: golden pictures first."""

from __future__ import annotations

import csv
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import Field

from jobkit import job
from jobkit.bottle import Bottle, FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec
from jobkit.snapshot import Sample, Snapshot, last_snapshot, read_snapshot
from nightshift_common.names import GroupName
from nightshift_common.options.training import BatchSize, Epochs
from training_jobs import train_classifier
from training_jobs.data.label_review import confirmed, read_reviews
from training_jobs.review_labels import COLUMNS, SEPARATOR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training_jobs.classifier.config import Config
    from training_jobs.scoring.label_errors import Suspects

logger = logging.getLogger("training_jobs.find_label_errors")

SHOWN = 200  # thumbnails of each part of the page
THUMBNAIL = 160  # pixels


class Arguments(job.Arguments):
    """Find labels of a snapshot that are probably wrong, by models that were not trained on them: the pipeline's own
    training is run once for each fold of the training and validation pictures, and golden pictures are judged by all
    of these models. The queue is a table that a person fills in, for `review_labels`, and a page with the pictures."""

    group: GroupName = Field(description="group of pictures")
    config_filename: Path | None = Field(
        None, description="the training's configuration; default: as in train_classifier, by the group"
    )
    snapshot_id: str | None = Field(None, description="default: the snapshot that was pulled last")
    epochs: Epochs | None = Field(None, description="overrides training.epochs")
    batch: BatchSize | None = Field(None, description="overrides dataset.data_loaders.train_batch_size")
    folds: int = Field(5, ge=2, le=50, description="trainings; each leaves out one part, which it then judges")


class Result(job.Result):
    """Where the queue is, and how long."""

    queue: str = Field(description="key in the bottle: the table")
    report: str = Field(description="key in the bottle: the page")
    suspects: int = Field(description="pictures in the queue")
    golden_suspects: int
    pictures: int = Field(description="pictures that were judged")
    reviewed: int = Field(description="pictures that were left out of the queue: a person has confirmed their labels")
    agreement: float = Field(description="share of the judged pictures whose label is what the models say")


class Overlay(FolderBottle):
    """A folder of its own over another bottle, which is only read."""

    def __init__(self, root: Path, below: Bottle) -> None:
        super().__init__(root)
        self.below = below

    def exists(self, key: str) -> bool:
        """Whether `key` is in either."""
        return super().exists(key) or self.below.exists(key)

    def local(self, key: str) -> Path:
        """Return the file of the folder, else of the bottle below."""
        return super().local(key) if super().exists(key) else self.below.local(key)


@dataclass(frozen=True)
class Judged:
    """Pictures and what models that never saw their labels say: probabilities, float [N, K]."""

    samples: list[Sample]
    probabilities: NDArray[np.float64]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Judge, rank, and write the queue."""
    bottle, group = context.bottle, arguments.group
    identifier = arguments.snapshot_id or last_snapshot(bottle, group)
    snapshot = read_snapshot(bottle, group, identifier)
    task = _task(arguments, identifier, context)
    judged = judge(task.config, snapshot, bottle, arguments.folds)
    found, agreement = _suspects(snapshot, judged)
    reviews = read_reviews(bottle, group)
    known = {review.sha256 for review in confirmed(judged.samples, reviews)}
    rows = [row for row in _rows(snapshot, judged, found) if row.sample.sha256 not in known]
    golden = sum(row.sample.split == "golden" for row in rows)
    place = f"evaluations/{group}/{identifier}/label_errors"
    page = _page(bottle, snapshot, rows, len(judged.samples), f"{place}.csv")
    bottle.write(f"{place}.html", page)
    bottle.write(f"{place}.csv", table(rows))
    result = Result(
        queue=f"{place}.csv", report=f"{place}.html", suspects=len(rows), golden_suspects=golden,
        pictures=len(judged.samples), reviewed=len(known), agreement=agreement,
    )  # fmt: skip
    logger.info(
        "%d of %d labels may be wrong, %d of them golden; %d pictures were reviewed before; queue: %s/%s, page: "
        "%s/%s", len(rows), len(judged.samples), golden, len(known), bottle, result.queue, bottle, result.report,
    )  # fmt: skip
    if context.is_tracked:
        run_ = context.tracking
        run_.params({"snapshot_id": identifier, "group": group, "folds": arguments.folds})
        run_.metrics({"suspects": len(rows), "golden_suspects": golden, "agreement": agreement})
        run_.text(page, "report.html")
        run_.text(table(rows), "label_errors.csv")
    return result


def _task(arguments: Arguments, identifier: str, context: job.Context) -> train_classifier.Task:
    """Return the training whose models judge.

    Raises:
        ConfigurationError: it trains on something else than the pictures of the snapshot, or has seen their labels.
    """
    task = train_classifier.asked_for(
        train_classifier.Arguments(
            config_filename=arguments.config_filename, cat=arguments.group, snapshot_id=identifier,
            epochs=arguments.epochs, batch=arguments.batch,
        ),
        context,
    )  # fmt: skip
    if task.source != "snapshot" or task.config.dataset.people_crops:
        raise ConfigurationError(
            "labels of a snapshot's whole pictures are judged: dataset.label_source and dataset.people_crops are of "
            "something else; name a configuration without them"
        )
    start = task.config.model.load_from
    if start is not None and arguments.group in PurePosixPath(start).parts:
        raise ConfigurationError(
            f"model.load_from is {start}, a model of group {arguments.group}: it has learned the labels that are to be "
            "judged; name a configuration that starts elsewhere"
        )
    return task


def judge(config: Config, snapshot: Snapshot, bottle: Bottle, folds: int) -> Judged:
    """Train once a fold; return what is said of pictures that were left out, and of golden ones the mean of all."""
    import numpy as np

    from training_jobs.classifier import examples as sets
    from training_jobs.classifier.training import train
    from training_jobs.scoring.models import load_candidate
    from training_jobs.scoring.predict import align, predict

    summary = snapshot.summary
    learned, golden = [*snapshot.split("train"), *snapshot.split("val")], snapshot.split("golden")
    whole = sets.from_snapshot(bottle, summary.group, summary.snapshot_id)
    everything = [*whole.train, *whole.val]
    said = np.zeros((len(learned), len(summary.labels)))
    of_golden = np.zeros((len(golden), len(summary.labels)))
    for number, (inside, outside) in enumerate(parts(learned, folds, config.seed)):
        logger.info("fold %d of %d: %d pictures to train on, %d to judge", number + 1, folds, len(inside), len(outside))
        fold = replace(whole, train=[everything[i] for i in inside], val=[everything[i] for i in outside])
        sets.check(fold, config.model.n_classes)
        with tempfile.TemporaryDirectory(prefix="nightshift-fold-") as folder:
            scratch, experiment = Overlay(Path(folder), bottle), Experiment(f"models/{summary.group}/fold_{number}")
            train(config, fold, scratch, experiment, None)
            model = load_candidate(scratch, experiment.folder, ModelSpec)
            pictures = [*(learned[i] for i in outside), *golden]
            found = align(predict(bottle, pictures, model), model.spec.labels, summary.labels)[:, :-1]
        said[outside] = found[: len(outside)]
        of_golden += found[len(outside) :] / folds
    return Judged([*learned, *golden], np.concatenate([said, of_golden]))


def parts(samples: Sequence[Sample], folds: int, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the places of the pictures to train on and of those to judge: split groups stay whole, classes even.

    Raises:
        DataValidationError: there are fewer split groups than folds.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [sample.split_group for sample in samples]
    if len(set(groups)) < folds:
        raise DataValidationError(f"{len(set(groups))} picsets or single pictures have no {folds} folds")
    strata = [SEPARATOR.join(sample.labels) for sample in samples]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros(len(samples)), strata, groups)


@dataclass(frozen=True)
class Row:
    """A picture of the queue."""

    sample: Sample
    suggested: list[str]
    margin: float
    sure: bool


def _suspects(snapshot: Snapshot, judged: Judged) -> tuple[Suspects, float]:
    import numpy as np

    from nightshift_common.picture_preparation import SHOWN as THRESHOLD
    from training_jobs.scoring.label_errors import several_suspects, suspects

    names, index = snapshot.summary.labels, snapshot.label_index()
    if snapshot.is_multi_label:
        given = np.array([[label in sample.labels for label in names] for sample in judged.samples], np.int64)
        agreed = ((judged.probabilities >= THRESHOLD) == given).all(1)
        return several_suspects(given, judged.probabilities), float(agreed.mean())
    labels = np.array([index[sample.label] for sample in judged.samples])
    agreed = judged.probabilities.argmax(1) == labels
    return suspects(labels, judged.probabilities), float(agreed.mean())


def _rows(snapshot: Snapshot, judged: Judged, found: Suspects) -> list[Row]:
    """Return the queue: golden pictures first, of each part the surest first."""
    names, rows = snapshot.summary.labels, []
    for place, suggested, margin, sure in zip(*found, strict=True):
        chosen = [n for n, yes in zip(names, suggested, strict=True) if yes] if suggested.ndim else [names[suggested]]
        rows.append(Row(judged.samples[place], chosen, float(margin), bool(sure)))
    return sorted(rows, key=lambda row: row.sample.split != "golden")


def table(rows: Sequence[Row]) -> str:
    """Return the queue as the table that `review_labels` takes once a person has filled in the verdicts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "labels", "margin", "sure", "split", "source"])
    for row in rows:
        sample = row.sample
        said = SEPARATOR.join(sample.labels), f"{row.margin:.4f}", "yes" if row.sure else "no"
        writer.writerow([sample.path, "", SEPARATOR.join(row.suggested), *said, sample.split, sample.source])
    return text.getvalue()


def _page(bottle: Bottle, snapshot: Snapshot, rows: Sequence[Row], judged: int, key: str) -> str:
    from training_jobs.report_kit.blocks import Picture, Pictures, Section, Text
    from training_jobs.report_kit.page import page
    from training_jobs.scoring.evaluation_report import read_thumbnail

    def section(title: str, some: list[Row]) -> Section:
        shown = [
            Picture(
                read_thumbnail(bottle, row.sample.path, THUMBNAIL)[0],
                f"{', '.join(row.sample.labels) or '-'} → {', '.join(row.suggested) or '-'}? "
                f"({row.margin:+.2f}{'' if row.sure else ', unsure'})",
                Path(row.sample.source).name[-40:],
            )
            for row in some[:SHOWN]
        ]
        left = [Text(f"The {SHOWN} surest of {len(some)} are shown; the table has all.")] if len(some) > SHOWN else []
        return Section(f"{title} ({len(some)})", [*left, Pictures(shown)] if some else [Text("None.")])

    golden = [row for row in rows if row.sample.split == "golden"]
    others = [row for row in rows if row.sample.split != "golden"]
    summary = snapshot.summary
    how = (
        f"Label, what the models believe, and the margin between both: -1 is the surest. To decide, fill in the column "
        f"verdict of {key} (keep, relabel or drop; relabel_to has the suggestion), and run: python -m "
        f"training_jobs.review_labels --group {summary.group} --snapshot_id {summary.snapshot_id} --by <you> "
        f"--decisions <the table>. The next pull applies it."
    )
    sure = sum(row.sure for row in rows)
    verdict = (
        f"{sure} of {judged} labels are probably wrong, {len(rows) - sure} more are doubtful; "
        f"{len(golden)} of all these are golden."
    )
    sections = [
        Section("How to review", [Text(how)]), section("Golden pictures", golden),
        section("Training and validation pictures", others),
    ]  # fmt: skip
    return page(f"Labels of {summary.group} to look at", verdict, sections, "plain")


if __name__ == "__main__":
    job.main(Arguments, run)
