"""`evaluate` with real small models: the candidate by PyTorch, the champion by ONNX Runtime, fetched over HTTP."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobkit import job
from jobkit.answers import read_answers
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec, input_shape
from jobkit.snapshot import Sample, Snapshot, read_snapshot, write_snapshot
from nightshift_common.options.gate import GateOptions
from tests.support.reports import assert_stands_alone, charts_of, text_of
from tests.training_jobs.small_classifier import SmallClassifier
from tests.training_jobs.storage import Storage
from training_jobs import evaluate, gate
from training_jobs.data.listing import Listed
from training_jobs.data.picture_inspection import inspect
from training_jobs.data.selection import Rules, select
from training_jobs.scoring.classification import ClassifierEvaluation
from training_jobs.scoring.golden import ARRIVED
from training_jobs.scoring.history import count_look, write_best
from training_jobs.scoring.models import load_candidate

LABELS = ("circle", "cross", "square")
EXPERIMENT = "models/forms/v__0_train_log_16_0.001"


def drawing(label: str, random: np.random.Generator) -> bytes:
    """A form somewhere in a noisy picture: easy, but not for every picture."""
    image = Image.fromarray(random.integers(0, 90, (32, 32), np.uint8))
    x, y, r = random.integers(9, 22), random.integers(9, 22), random.integers(4, 9)
    pen = ImageDraw.Draw(image)
    if label == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=255)
    elif label == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), outline=255)
    else:
        pen.line((x - r, y - r, x + r, y + r), fill=255)
        pen.line((x - r, y + r, x + r, y - r), fill=255)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_snapshot(bottle: FolderBottle, labels: tuple[str, ...], count: int = 160) -> Snapshot:
    random = np.random.default_rng(5)
    listed, inspected = [], {}
    for label in LABELS:
        for n in range(count):
            content = drawing(label, random)
            if label in labels:
                source = f"{label}_{n}.png"
                listed.append(Listed(source=source, label=label, split_group=source))
                inspected[source] = inspect(source, content, 100)
                picture = inspected[source]
                bottle.write(f"pictures/{picture.sha256[:2]}/{picture.sha256}.png", content)
    selection = select(listed, inspected, Rules(1, 100, 0.15, 0.25))
    summary = write_snapshot(bottle, "forms", selection.samples, [])
    return read_snapshot(bottle, "forms", summary.snapshot_id)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], str]]:
    """A bottle with two snapshots: one of all classes, one that lacks a class."""
    root = tmp_path_factory.mktemp("forms")
    return root, {some: make_snapshot(FolderBottle(root), some).summary.snapshot_id for some in (LABELS, LABELS[1:])}


@pytest.fixture
def snapshots(made: tuple[Path, dict[tuple[str, ...], str]], bottle: FolderBottle) -> dict[tuple[str, ...], Snapshot]:
    bottle.root.mkdir()
    for folder in ("pictures", "snapshots"):
        (bottle.root / folder).symlink_to(made[0] / folder)  # only read
    return {some: read_snapshot(bottle, "forms", identifier) for some, identifier in made[1].items()}


@pytest.fixture
def snapshot(snapshots: dict[tuple[str, ...], Snapshot]) -> Snapshot:
    return snapshots[LABELS]


def run(context: job.Context, snapshot: Snapshot) -> tuple[evaluate.Result, ClassifierEvaluation]:
    arguments = evaluate.Arguments(
        group="forms", snapshot_id=snapshot.summary.snapshot_id, experiment=EXPERIMENT, model_name="forms"
    )
    result = evaluate.run(arguments, context)
    return result, ClassifierEvaluation.model_validate_json(context.bottle.read(result.report))


def test_a_candidate_alone_is_scored_on_the_golden_pictures(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    SmallClassifier(bottle, snapshot).write_experiment(bottle, Path(EXPERIMENT).name)
    result, evaluation = run(context, snapshot)
    golden = snapshot.split("golden")
    assert result.report == f"evaluations/forms/{snapshot.summary.snapshot_id}/{Path(EXPERIMENT).name}.json"
    assert result.champion is None
    assert evaluation.pictures == len(golden)
    assert {name: part.support for name, part in result.candidate.slices.items()} == {
        f"class/{label}": sum(s.label == label for s in golden) for label in LABELS
    }
    assert 0.45 < result.candidate.metrics["accuracy"] < 1, (
        "better than chance, and not perfect: the test can see a change"
    )
    wrong = round((1 - result.candidate.metrics["accuracy"]) * len(golden))
    assert len(evaluation.mistakes) == min(wrong, evaluate.SHOWN_MISTAKES)
    assert [m.probability for m in evaluation.mistakes] == sorted(
        (m.probability for m in evaluation.mistakes), reverse=True
    )
    labels = {s.source: s.label for s in golden}
    assert all(labels[m.source] == m.label != m.predicted for m in evaluation.mistakes)
    assert storage.authorization == "Bearer a token"


def test_the_same_model_as_torchscript_and_as_onnx_has_the_same_scores(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion, storage.archive = "0.0.7", model.archive()
    result, evaluation = run(context, snapshot)
    assert result.champion is not None
    assert result.champion.version == "0.0.7"
    assert result.champion.metrics == pytest.approx(result.candidate.metrics, abs=1e-4)
    assert evaluation.comparison is not None
    assert evaluation.comparison.gains["accuracy"].value == 0
    assert gate.decide(evaluation, GateOptions(metric="macro_f1", undecided="promote")).promote


def test_an_imported_candidate_is_run_by_its_graph_and_its_torchscript_is_not_opened(
    bottle: FolderBottle, snapshot: Snapshot
) -> None:
    model = SmallClassifier(bottle, snapshot)
    folder = model.write_experiment(bottle, "imported_torchscript_0123456789ab")
    bottle.write(Experiment(folder).torchscript, b"a program of a stranger")
    with pytest.raises(DataValidationError, match="was imported: it is evaluated once it is exported"):
        load_candidate(bottle, folder, ModelSpec)
    with zipfile.ZipFile(io.BytesIO(model.archive())) as archive:
        bottle.write(Experiment(folder).onnx, archive.read("model.onnx"))
    inputs = np.random.default_rng(1).random((3, *input_shape(model.spec)), np.float32)
    (found,) = load_candidate(bottle, folder, ModelSpec).outputs(inputs)
    np.testing.assert_allclose(found, inputs.reshape(3, -1) @ model.weight.T + model.bias, rtol=1e-3, atol=1e-4)


def good_and_bad(bottle: FolderBottle, snapshot: Snapshot) -> tuple[SmallClassifier, SmallClassifier]:
    """Return a model, and the candidate: the same with its classes mixed up."""
    good, bad = SmallClassifier(bottle, snapshot), SmallClassifier(bottle, snapshot)
    bad.weight = bad.weight[[1, 2, 0]]
    bad.write_experiment(bottle, Path(EXPERIMENT).name)
    return good, bad


def test_a_worse_candidate_is_seen_to_be_worse(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    good, _ = good_and_bad(bottle, snapshot)
    storage.champion, storage.archive = "0.0.1", good.archive()
    _, evaluation = run(context, snapshot)
    assert evaluation.comparison is not None
    assert evaluation.comparison.gains["accuracy"].value < -0.1
    assert evaluation.comparison.p_value < 0.01
    flips = evaluation.negative_flips
    assert len(flips) == min(evaluation.comparison.only_champion_right, evaluate.SHOWN_MISTAKES)
    assert flips
    assert all(flip.champion == flip.label != flip.predicted for flip in flips)
    assert not gate.decide(evaluation, GateOptions(metric="macro_f1")).promote


@pytest.mark.parametrize("first_action", ["promote", "load"])  # load: moved in from the older storage
def test_a_candidate_is_compared_with_the_founding_champion_and_the_best_so_far(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage, first_action: str
) -> None:
    """Production has leaked below the version that it began with: being as good as the champion is not enough."""
    good, bad = good_and_bad(bottle, snapshot)
    storage.champion, storage.archive = "0.0.5", bad.archive()
    storage.first_action = first_action
    storage.earlier = {"0.0.1": good.archive(), "0.0.3": good.archive(), "0.0.4": b"no archive"}
    _, evaluation = run(context, snapshot)
    (founding,) = evaluation.references
    assert (founding.role, founding.version) == ("founding champion", "0.0.1")
    assert founding.candidate.gains["accuracy"].value < -0.1
    assert founding.candidate.gains == pytest.approx(founding.champion.gains), "candidate and champion are one model"
    decision = gate.decide(evaluation, GateOptions(metric="accuracy", undecided="promote"))
    assert not decision.promote
    assert any("the founding champion 0.0.1" in reason for reason in decision.reasons)

    write_best(bottle, "forms", "forms", "0.0.3")
    _, evaluation = run(context, snapshot)
    assert [(found.role, found.version) for found in evaluation.references] == [
        ("best so far", "0.0.3"), ("founding champion", "0.0.1"),
    ]  # fmt: skip
    write_best(bottle, "forms", "forms", "0.0.4")
    _, evaluation = run(context, snapshot)
    assert [found.version for found in evaluation.references] == ["0.0.1"], "what cannot be run is left out"


def test_each_candidate_is_counted_once_on_a_golden_set(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    SmallClassifier(bottle, snapshot).write_experiment(bottle, Path(EXPERIMENT).name)
    assert [run(context, snapshot)[1].look for _ in range(2)] == [1, 1], "a task that is tried again spends nothing"
    golden = snapshot.split("golden")

    def look(experiment: str, pictures: list[Sample], snapshot_id: str = "s2") -> int:
        return count_look(bottle, "forms", "forms", snapshot_id, f"models/forms/{experiment}", pictures)

    assert look("second", golden) == 2
    assert look("third", golden[: len(golden) // 2]) == 3, "fewer of the same pictures are the same golden set"
    fresh = [sample.model_copy(update={"sha256": f"{i:064x}"}) for i, sample in enumerate(golden)]
    assert look("fourth", fresh) == 1
    assert look("second", golden) == 2
    assert count_look(bottle, "forms", "another", "s2", "models/forms/second", golden) == 1


def test_a_golden_set_that_grew_a_hundredfold_in_one_batch_keeps_its_budget(bottle: FolderBottle) -> None:
    def golden(count: int) -> list[Sample]:
        digests = (hashlib.sha256(str(n).encode()).hexdigest() for n in range(count))
        return [
            Sample(sha256=d, path=d, label="a", split="golden", width=1, height=1, split_group=d, source=d)
            for d in digests
        ]

    assert count_look(bottle, "forms", "forms", "small", "models/forms/first", golden(70)) == 1
    large = golden(30_000)
    sketches = [set(sorted(s.sha256 for s in some)[:64]) for some in (golden(70), large)]
    assert not sketches[0] & sketches[1], "samples of both would not know each other"
    assert count_look(bottle, "forms", "forms", "large", "models/forms/second", large) == 2


def test_what_arrived_since_the_champion_was_trained_is_a_slice_of_both(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    earlier = [s for n, s in enumerate(snapshot.samples) if n % 2]
    known = write_snapshot(bottle, "forms", earlier, [])
    champion = SmallClassifier(bottle, read_snapshot(bottle, "forms", known.snapshot_id))
    SmallClassifier(bottle, snapshot).write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion, storage.archive = "0.0.1", champion.archive()
    result, evaluation = run(context, snapshot)
    golden = snapshot.split("golden")
    fresh = {s.path for s in golden} - {s.path for s in earlier}
    assert evaluation.golden is not None and evaluation.golden.arrived == len(fresh) > 20
    assert evaluation.pictures == len(golden), "both were scored anew on all of them"
    answers = read_answers(bottle, result.answers or "")
    said = {p: champion.spec.labels[i] for p, i in zip(answers.pictures, answers.probabilities.argmax(1), strict=True)}
    right = [said[s.path] == s.label for s in golden if s.path in fresh]
    assert result.candidate.slices[ARRIVED].score == pytest.approx(sum(right) / len(right))
    assert result.candidate.slices[ARRIVED].support == len(fresh)
    assert evaluation.champion is not None and evaluation.comparison is not None
    gain = evaluation.comparison.slices[ARRIVED]
    assert gain.value == pytest.approx(
        result.candidate.slices[ARRIVED].score - evaluation.champion.slices[ARRIVED].score
    )
    page = text_of(bottle.read(result.report.replace(".json", ".html")).decode())
    assert evaluation.golden.id in page and f"{len(fresh)} arrived since the champion was trained" in page


def test_where_the_champions_data_are_not_known_the_evaluation_says_so(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion = "0.0.1"
    for identifier, says in ((None, "does not say which snapshot"), ("0" * 16, "cannot be read")):
        model.spec = model.spec.model_copy(update={"snapshot_id": identifier})
        storage.archive = model.archive()
        _, evaluation = run(context, snapshot)
        assert evaluation.golden is not None and evaluation.golden.arrived is None
        assert says in evaluation.golden.sentence and "what arrived since is not known" in evaluation.golden.sentence
        assert evaluation.comparison is not None and ARRIVED not in evaluation.comparison.slices


def test_a_champion_that_knows_other_classes_is_matched_by_name_and_said_so(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    SmallClassifier(bottle, snapshot).write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion = "0.0.1"
    storage.archive = SmallClassifier(bottle, snapshot, labels=["cross", "square"]).archive()
    result, _ = run(context, snapshot)
    assert result.champion is not None
    assert result.champion.slices["class/circle"].f1 == 0
    assert result.champion.slices["class/square"].f1 > 0.4
    (note,) = result.notes
    assert "the champion 0.0.1 does not know the class 'circle'" in note


def test_a_class_that_is_gone_is_said_so(
    context: job.Context,
    bottle: FolderBottle,
    snapshot: Snapshot,
    snapshots: dict[tuple[str, ...], Snapshot],
    storage: Storage,
) -> None:
    smaller = snapshots[LABELS[1:]]
    SmallClassifier(bottle, smaller).write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion, storage.archive = "0.0.1", SmallClassifier(bottle, snapshot).archive()
    result, evaluation = run(context, smaller)
    assert "also knows the class 'circle'" in result.notes[0]
    assert evaluation.champion is not None
    assert len(evaluation.champion.confusion[0]) == 3


def spoiled(archive: bytes, drop: str = "", replace: tuple[str, bytes] = ("", b"")) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(buffer, "w") as after:
        for name in before.namelist():
            if name != drop:
                after.writestr(name, replace[1] if name == replace[0] else before.read(name))
    return buffer.getvalue()


def test_a_champion_that_cannot_be_used_is_an_error_that_says_what_to_do(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    whole = model.archive()
    storage.champion = "0.0.1"
    for archive, message in (
        (whole[: len(whole) // 2], "its archive is damaged"),
        (spoiled(whole, drop="model.onnx"), r"lacks model\.onnx, it has model\.json, meta\.json"),
        (spoiled(whole, drop="model.json"), r"lacks model\.json"),
        (spoiled(whole, replace=("model.onnx", b"torn")), r"model\.onnx of version 0\.0\.1 .* does not load"),
        (spoiled(whole, replace=("model.json", b"{}")), r"model\.json of version 0\.0\.1 .* is not valid"),
    ):
        storage.archive = archive
        with pytest.raises(DataValidationError, match=message):
            run(context, snapshot)
    assert not list(bottle.keys("evaluations"))


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, TransientError), (503, TransientError), (401, ConfigurationError), (403, ConfigurationError)],
)
def test_a_storage_that_does_not_answer_well_is_typed(
    context: job.Context,
    bottle: FolderBottle,
    snapshot: Snapshot,
    storage: Storage,
    status: int,
    error: type[Exception],
) -> None:
    SmallClassifier(bottle, snapshot).write_experiment(bottle, Path(EXPERIMENT).name)
    storage.status = status
    with pytest.raises(error, match=f"answered {status}"):
        run(context, snapshot)


def test_a_candidate_that_cannot_be_used_is_refused_with_its_file(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    with pytest.raises(DataValidationError, match=r"model\.json is not in the bottle"):
        run(context, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    script = f"{EXPERIMENT}/torchscripts/model.pt"
    whole = bottle.read(script)
    bottle.write(script, whole[:300])
    with pytest.raises(DataValidationError, match=r"model\.pt does not load"):
        run(context, snapshot)
    bottle.write(script, whole)
    spec = model.spec.model_copy(update={"labels": ["circle", "cross"]})
    bottle.write(f"{EXPERIMENT}/model.json", spec.model_dump_json())
    with pytest.raises(DataValidationError, match=r"gives outputs \[\d+, 3\], but its spec says \[\d+, 2\]"):
        run(context, snapshot)
    bottle.write(f"{EXPERIMENT}/model.json", model.spec.model_copy(update={"group": "other"}).model_dump_json())
    with pytest.raises(DataValidationError, match="was trained for group other, not forms"):
        run(context, snapshot)


def test_a_candidate_whose_weights_are_not_numbers_is_refused(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    model.weight[0, 0] = float("nan")
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    with pytest.raises(DataValidationError, match="not finite"):
        run(context, snapshot)


def test_mlflow_gets_numbers_and_pictures(
    bottle: FolderBottle, snapshot: Snapshot, storage: Storage, mlflow_url: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    from nightshift_common.task_instance import TaskInstanceKey

    model = SmallClassifier(bottle, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion, storage.archive = "0.0.7", model.archive()
    context = job.Context(tmp_path, TaskInstanceKey(dag_id="retrain_evaluate_test", run_id="r1", task_id="evaluate"))
    result, _ = run(context, snapshot)
    context.close(succeeded=True)
    api = MlflowClient(mlflow_url)
    stored = api.get_run(context.tracking.run_id)
    assert stored.data.metrics["candidate/accuracy"] == pytest.approx(result.candidate.metrics["accuracy"])
    assert stored.data.metrics["champion/class/circle/f1"] > 0
    assert stored.data.metrics["gain/macro_f1"] == 0
    assert stored.data.tags["nightshift.champion"] == "0.0.7"
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("forms", snapshot.summary.snapshot_id)
    names = {f.path for f in api.list_artifacts(stored.info.run_id)}
    assert names == {"evaluation.json", "report.html"}
    page = Path(api.download_artifacts(stored.info.run_id, "report.html", str(tmp_path))).read_text()
    assert page == bottle.read(result.report.replace(".json", ".html")).decode()


def test_the_report_for_people_has_the_evaluations_numbers_and_its_mistakes_as_pictures(
    context: job.Context, bottle: FolderBottle, snapshot: Snapshot, storage: Storage
) -> None:
    model = SmallClassifier(bottle, snapshot)
    model.write_experiment(bottle, Path(EXPERIMENT).name)
    storage.champion, storage.archive = "0.0.7", model.archive()
    result, evaluation = run(context, snapshot)
    page = bottle.read(result.report.replace(".json", ".html")).decode()
    assert_stands_alone(page)
    drawn = charts_of(page)
    (heat,) = drawn["Golden pictures by class and the candidate's answer"]["data"]
    counts = [[cell[0] for cell in row] for row in heat["customdata"]]
    assert counts == [row[: len(counts[0])] for row in evaluation.candidate.confusion]
    assert not any(any(row[len(counts[0]) :]) for row in evaluation.candidate.confusion), "nothing is left out"
    bars = drawn["F1 of each class and slice"]["data"]
    assert [bar["name"] for bar in bars] == [evaluation.candidate.version, "champion 0.0.7"]
    for bar, scores in zip(bars, (evaluation.candidate, evaluation.champion), strict=True):
        named = dict(zip((about[0] for about in bar["customdata"]), bar["x"], strict=True))
        assert named == {name: part.score for name, part in scores.slices.items()}
    (gains,) = drawn["Gain over the champion, with 95 % intervals"]["data"]
    assert gains["x"] == [gain.value for gain in evaluation.comparison.gains.values()]
    found = re.findall(r'<figure class="picture">.*?src="data:image/jpeg;base64,(.*?)"', page, re.DOTALL)
    assert len(found) == len(evaluation.mistakes) > 0
    with Image.open(io.BytesIO(b64decode(found[0]))) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
        assert colors is not None and len(colors) > 5
    text = text_of(page)
    assert all(f"{value:.4f}" in text for value in evaluation.candidate.metrics.values())
