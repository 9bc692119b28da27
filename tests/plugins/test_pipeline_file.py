"""The pipeline file: what is wrong is named by file, line and key, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from local import new_pipeline
from nightshift.fingerprint import Fingerprint
from nightshift.kinds import KINDS, AnyPipeline
from nightshift.kinds.classification import ClassificationPipeline as Pipeline
from nightshift.kinds.training_config import check_training_config
from nightshift.launchers.base import command_options
from nightshift.pipelines.files import load_pipeline
from nightshift.steps import Step
from nightshift_common.gpus import GPUS, GpuName
from nightshift_common.pools import pools
from nightshift_common.yaml_file import ConfigFileError

ROOT = Path(__file__).resolve().parents[2]
TRAINING_FILES = ROOT / "tests" / "compatibility" / "training_files"
GOOD = """\
description: Shoes and bags
owner: ml-team
schedule: "0 2 * * *"
data:
  group: footwear
train:
  config: configs/classifier/footwear.yaml
publish:
  model_name: footwear
"""


TRAINING = "experiment_name: footwear\nmodel: {backbone_name: resnet18.a1_in1k}\n"


@pytest.fixture
def pipelines(home: Path) -> Path:
    (home / "configs" / "classifier").mkdir()
    (home / "configs" / "classifier" / "footwear.yaml").write_text(TRAINING)
    return home / "configs" / "pipelines"


def load(pipelines: Path, text: str | bytes, name: str = "footwear.yaml") -> Pipeline:
    path = pipelines / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    pipeline = load_pipeline(path)
    assert isinstance(pipeline, Pipeline)
    return pipeline


def errors(pipelines: Path, text: str | bytes, name: str = "footwear.yaml") -> list[str]:
    with pytest.raises(ConfigFileError) as caught:
        load(pipelines, text, name)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"configs/pipelines/{name}:") for line in lines)
    return [line.removeprefix(f"configs/pipelines/{name}:") for line in lines]


def with_line(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_file_is_a_pipeline(pipelines: Path) -> None:
    pipeline = load(pipelines, GOOD)
    assert pipeline.data.group == "footwear"
    assert pipeline.schedule == "0 2 * * *"
    assert pipeline.retries.attempts == 3


def test_the_pipelines_that_come_with_the_project_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_HOME", str(ROOT))
    files = sorted((ROOT / "configs" / "pipelines").glob("*.yaml"))
    assert files
    for file in files:
        load_pipeline(file)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("owner: ml-team", "ownr: ml-team", 2, "ownr: there is no such key; did you mean 'owner'? valid: convert"),
        ("  group: footwear", "  grup: footwear", 5, "data.grup: there is no such key; did you mean 'group'?"),
        ("  group: footwear", "  source: collect", 4, "data.group: the key is missing"),
        ("owner: ml-team", "owner: ml-team\nowner: others", 3, "owner: this key stands here a second time"),
        (
            "  group: footwear",
            "  group: footwear\n  group: bags",
            6,
            "data.group: this key stands here a second time; the first is on line 5",
        ),
        ("  group: footwear", "  group: footwear\n  min_side: small", 6, "data.min_side: input should be a valid int"),
        ("  group: footwear", "  group: footwear\n  min_side: '16'", 6, '(it is "16")'),
        ("  group: footwear", "  group: footwear\n  min_side: 0", 6, "greater than or equal to 1 (it is 0)"),
        ("  group: footwear", "  group: footwear\n  val_part: 0.5", 6, "data.val_part: input should be less"),
        ("  group: footwear", "  group: footwear\n  val_part: .inf", 6, "data.val_part: input should be a"),
        ("  group: footwear", "  group: footwear\n  min_side: 99\n  max_side: 9", 4, "min_side (99) is larger than"),
        ("  group: footwear", "  group: ../footwear", 5, "data.group: string should match pattern"),
        ("  group: footwear", "  group: footwear\n  source: s3", 6, "data.source: input should be 'collect' or 'postg"),
        ("  group: footwear", "  group: footwear\n  source: postgres", 4, "source postgres needs it"),
        ("  group: footwear", "  group: footwear\n  table: pictures", 4, "table goes with source postgres"),
        ('schedule: "0 2 * * *"', "schedule: every night", 3, "schedule: not a cron expression, such as '0 2 * * *'"),
        ('schedule: "0 2 * * *"', 'schedule: "0 2 31 2 *"', 3, "schedule: a cron expression that no day fits"),
        ('schedule: "0 2 * * *"', 'schedule: "0 0 2 * * *"', 3, "schedule: not a cron expression"),
        ("configs/classifier/footwear.yaml", "configs/classifier/shoe.yaml", 7, "train.config: there is no file"),
        ("publish:", "convert: {targets: [onnx, plan]}\npublish:", 8, "convert.targets[1]: input should be 'onnx'"),
        ("publish:", "convert: {targets: [onnx, onnx]}\npublish:", 8, "targets has something twice: onnx, onnx"),
        ("publish:", "convert: {gpu: T5}\npublish:", 8, "convert.gpu: input should be 'T4'"),
        ("publish:", "convert: {limit_ms: 10}\npublish:", 8, "goal_ms (1000) is above limit_ms (10)"),
        ("model_name: footwear", "model_name: Foot Wear", 9, "publish.model_name: string should match pattern"),
        ("owner: ml-team", "owner: ''", 2, "owner: string should have at least 1 character"),
        ("owner: ml-team", "owner:", 2, "owner: input should be a valid string (it is null)"),
        ("owner: ml-team", "tags: [a, 1]\nowner: ml-team", 2, "tags[1]: input should be a valid string (it is 1)"),
        ("owner: ml-team", "owner: ml-team\ntags: &me [*me]", 3, "an alias stands inside what it stands for"),
        ("owner: ml-team", "owner: !!python/object:os.system x", 2, "owner: Python objects are not allowed"),
        ("owner: ml-team", "owner: 'ml-team", 10, "scalar that begins in line 2"),
        ("owner: ml-team", "owner: ml-team\n\tindented: by a tab", 3, "this is not YAML"),
        ("data:\n  group: footwear", "data: footwear", 4, "data: input should be an object (it is \"footwear\")"),
    ],
)  # fmt: skip
def test_an_error_names_its_line_its_key_and_what_is_valid(
    pipelines: Path, old: str, new: str, line: int, words: str
) -> None:
    (found,) = [error for error in errors(pipelines, with_line(old, new)) if words in error]
    assert found.startswith(f"{line}: ")


def test_all_errors_come_at_once_in_the_order_of_the_file(pipelines: Path) -> None:
    text = GOOD.replace("owner:", "ownr:").replace(
        "  group: footwear", "  group: footwear\n  group: bags\n  val_part: 7"
    )
    found = errors(pipelines, text)
    assert [line.partition(": ")[2].partition(":")[0] for line in found] == [
        "owner", "ownr", "data.group", "data.val_part"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- description: a list\n", "1: the file: Input should be an object"),
        ("just words\n", '1: the file: input should be an object (it is "just words")'),
        ("", "1: data: the key is missing"),
        ("a: 1\n---\nb: 2\n", "2: this is not YAML: but found another document"),
        (b"description: ok\nowner: \xff\xfe\n", "2: this is not UTF-8 text"),
        (b"\x00\x01", "not YAML"),
        ("a: " + "[" * 1500, "not YAML"),
    ],
)
def test_what_is_no_pipeline_at_all_is_an_error_too(pipelines: Path, content: str | bytes, words: str) -> None:
    assert any(words in line for line in errors(pipelines, content))


@pytest.mark.parametrize("name", ["Foot-Wear.yaml", "1st.yaml", "footwear.yml", "foot wear.yaml", "x" * 51 + ".yaml"])
def test_a_file_that_cannot_name_a_dag_says_how_to_call_it(pipelines: Path, name: str) -> None:
    (found,) = errors(pipelines, GOOD, name)
    assert "has to be <name>.yaml" in found


def test_numbers_and_words_are_those_of_yaml_1_2(pipelines: Path) -> None:
    text = GOOD + "gate:\n  floor: 9.e-1\nverify:\n  atol: 1e-3\n"
    pipeline = load(pipelines, text.replace("ml-team", "no"))
    assert (pipeline.gate.floor, pipeline.verify.atol, pipeline.owner) == (0.9, 0.001, "no")


def fingerprint(pipeline: Pipeline, **params: object) -> str:
    """Return the fingerprint of a night of the pipeline, or of a run by hand with other parameters."""
    steps = [
        pipeline.pull_step(),
        pipeline.train_step(),
        pipeline.evaluate_step(),
        Step("gate", pipeline.gate.model_dump()),
    ]
    return Fingerprint(steps)({"epochs": pipeline.train.epochs, "batch": pipeline.train.batch, **params})


def test_gpus_that_train_together_share_a_batch_and_change_nothing_else(pipelines: Path) -> None:
    two = load(pipelines, with_line("footwear.yaml\n", "footwear.yaml\n  gpus: 2\n"))
    assert two.train.gpus == 2
    assert fingerprint(two) == fingerprint(load(pipelines, GOOD))  # the same model comes out
    (error,) = errors(pipelines, with_line("footwear.yaml\n", "footwear.yaml\n  gpus: 3\n"))
    assert error.startswith("6: train: ") and "a batch of 64 pictures has no equal shares for gpus: 3" in error


def test_a_night_averages_over_mirror_images_and_calibrates_where_its_file_says_so(pipelines: Path) -> None:
    plain = load(pipelines, GOOD)
    assert {plain.train_step().options[name] for name in ("flip_tta", "temperature_scaling")} == {None}
    lines = "footwear.yaml\n  flip_tta: horizontal\n  temperature_scaling: false\n"
    said = load(pipelines, with_line("footwear.yaml\n", lines))
    options = command_options(said.train_step().options)
    assert options[options.index("--flip_tta") + 1] == "horizontal" and "--no-temperature_scaling" in options
    assert fingerprint(said) != fingerprint(plain)
    (error,) = errors(pipelines, with_line("footwear.yaml\n", "footwear.yaml\n  flip_tta: true\n"))
    assert error.startswith("8: train.flip_tta: ") and "'horizontal', 'vertical' or 'both'" in error


def test_metrics_and_options_fit_how_many_labels_a_picture_has(pipelines: Path) -> None:
    several = with_line("group: footwear\n", "group: footwear\n  multi_label: true\n")
    step = load(pipelines, several + "gate: {metric: map}\n").pull_step()
    assert "--multi_label" in command_options(step.options)
    assert fingerprint(load(pipelines, several)) == fingerprint(load(pipelines, GOOD)), "another snapshot says it"
    (error,) = errors(pipelines, GOOD + "gate: {metric: map}\n")
    assert "gate.metric map is of pictures with several labels" in error
    (error,) = errors(pipelines, several.replace("footwear.yaml\n", "footwear.yaml\n  temperature_scaling: true\n"))
    assert "temperature_scaling is of pictures with one label" in error


def test_the_fingerprint_changes_with_what_makes_the_model_and_with_nothing_else(pipelines: Path) -> None:
    before = fingerprint(load(pipelines, GOOD))
    other_words = GOOD.replace("Shoes and bags", "Shoes") + "retries:\n  attempts: 1\n"
    assert fingerprint(load(pipelines, other_words)) == before
    assert fingerprint(load(pipelines, GOOD.replace("model_name: footwear", "model_name: shoes"))) == before
    assert fingerprint(load(pipelines, GOOD + "gate:\n  floor: 0.5\n")) != before
    assert fingerprint(load(pipelines, with_line("group: footwear", "group: season"))) != before
    assert fingerprint(load(pipelines, GOOD), epochs=3) != before
    (pipelines.parent / "classifier" / "footwear.yaml").write_text(f"{TRAINING}seed: 7\n")
    assert fingerprint(load(pipelines, GOOD)) != before


def test_a_kind_that_there_is_not_is_named_with_those_that_there_are(pipelines: Path) -> None:
    (error,) = errors(pipelines, "kind: detecton\n" + GOOD)
    assert error == "1: kind: there is no kind 'detecton'; did you mean 'detection'? valid: " + ", ".join(KINDS)


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_a_pipeline_of_another_kind_has_the_sections_of_that_kind(pipelines: Path, kind: str) -> None:
    annotated = f"kind: {kind}\n" + GOOD.replace("  group: footwear", "  group: footwear\n  annotations: in/a.json")
    text = annotated.replace("train:\n  config: configs/classifier/footwear.yaml\n", "")
    assert load_pipeline_of(pipelines, text).kind == kind
    (error,) = errors(pipelines, annotated)
    assert "train.config: there is no such key" in error and "epochs" in error


def load_pipeline_of(pipelines: Path, text: str) -> AnyPipeline:
    (pipelines / "footwear.yaml").write_text(text)
    return load_pipeline(pipelines / "footwear.yaml")


@pytest.mark.parametrize("gpu", GPUS)
def test_a_plan_is_built_on_the_queue_and_in_the_pool_of_its_gpu(pipelines: Path, gpu: GpuName) -> None:
    convert = load(pipelines, GOOD + f"convert: {{targets: [tensorrt], gpu: {gpu}}}\n").convert
    assert (convert.gpu_queue, convert.gpu_pool) == (gpu.lower(), gpu.lower())
    own = load(pipelines, GOOD + f"convert: {{gpu: {gpu}, queue: mine, pool: ours}}\n").convert
    assert (own.gpu_queue, own.gpu_pool) == ("mine", "ours")
    assert gpu.lower() in pools(), "a task whose pool does not exist waits for ever"


def test_a_small_file_cannot_become_as_large_as_the_memory(pipelines: Path) -> None:
    levels = "".join(f"  - &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 9))
    (error,) = errors(pipelines, GOOD + "tags:\n  - &l0 x\n" + levels)
    assert "more than 20,000 values" in error


def test_what_make_new_pipeline_writes_is_a_pipeline(pipelines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_pipeline, "ROOT", pipelines.parents[1])
    _, path = new_pipeline.create({"name": "shoes", "description": 'All "shoes": yes', "group": "footwear"})
    assert load_pipeline(path).description == 'All "shoes": yes'


def test_two_pipelines_of_one_model_are_an_error_in_both(pipelines: Path) -> None:
    (pipelines / "boots.yaml").write_text(GOOD)
    assert errors(pipelines, GOOD) == [
        "9: publish.model_name: boots.yaml publishes 'footwear' too: each would "
        "replace the other's model every night; give one of them a name of its own"
    ]
    assert "footwear.yaml publishes 'footwear' too" in errors(pipelines, GOOD, "boots.yaml")[0]
    (pipelines / "boots.yaml").write_text(GOOD.replace("model_name: footwear", "model_name: boots"))
    assert load(pipelines, GOOD).publish.model_name == "footwear"
    (pipelines / "boots.yaml").write_text("publish: {")  # has an error of its own, and touches no other
    assert load(pipelines, GOOD).publish.model_name == "footwear"


def test_a_wrong_training_configuration_is_an_error_of_its_pipeline_with_its_own_lines(pipelines: Path) -> None:
    training = pipelines.parent / "classifier" / "footwear.yaml"
    training.write_text(
        "experiment_name: footwear\noptimzer: {lr: 0.1}\nmodel: {backbone_name: resnet81}\n"
        "dataset:\n  train_augmentations:\n    - {type: horizontal_flop, p: 0.5}\n"
        "    - {type: horizontal_flip, p: 1.5}\ntraining:\n  epochs: 0\n"
    )
    found = [
        line.removeprefix("7: train.config: configs/classifier/footwear.yaml:") for line in errors(pipelines, GOOD)
    ]
    assert found[0].startswith("2: optimzer: there is no such key; did you mean 'optimizer'? valid: criterion, dataset")
    assert found[1].startswith("3: model.backbone_name: timm has no architecture 'resnet81'; did you mean resnet")
    assert found[2].startswith("6: dataset.train_augmentations[0]: there is no such type; valid: coarse_dropout, ")
    assert found[3] == "7: dataset.train_augmentations[1].p: 1.5 is greater than the maximum of 1"
    assert found[4].startswith("9: training.epochs: 0 is less than")
    assert len(found) == 5


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "configs" / "classifier").glob("*.yaml"), *TRAINING_FILES.glob("*.yaml")]), ids=str
)
def test_files_that_train_are_taken_and_those_that_repeat_a_key_are_not(path: Path) -> None:
    if "twice" in path.name:
        with pytest.raises(ConfigFileError, match="stands here a second time"):
            check_training_config(path)
    else:
        check_training_config(path)
