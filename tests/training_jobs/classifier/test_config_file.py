"""The configuration file: users' files are taken; wrong ones are refused with all errors, each with its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobkit.errors import ConfigurationError
from local import new_pipeline
from training_jobs.classifier.config import AugmentationSchedule, Config, read_config

ROOT = Path(__file__).resolve().parents[3]

AS_USERS_WRITE_IT = """
experiment_name: pages
seed: 42
directories: {images: data/pages, backgrounds: data/backgrounds, models: data/models}
criterion:
  type: cross_entropy
dataset:
  image_size: 224
  insert_background_p: 0.2
  background_max_ratio: 1.5
  data_fraction: 1
  val_part: 0.1
  data_loaders: {train_batch_size: 32, val_batch_size: 64}
  pre_transforms:
    - type: longest_max_size
      max_size: 224
    - type: pad_if_needed
      min_height: 224
      min_width: 224
  train_augmentations:
    - {type: random_crop_from_borders, crop_ratio: 0.1, p: 0.3}
    - {type: shift_scale_rotate, shift_limit: 0.05, scale_limit: 0.1, rotate_limit: 10, p: 0.5}
    - {type: elastic_transform, alpha: 100, sigma: 10, p: 0.1}
    - {type: grid_destortion, num_steps: 5, distort_limit: 0.3, p: 0.1}
    - {type: random_brightness_contrast, brightness_limit: 0.2, contrast_limit: 0.2, p: 0.3}
    - {type: median_blur, blur_limit: 5, p: 0.1}
    - {type: rgb_shift, r_shift_limit: 20, g_shift_limit: 20, b_shift_limit: 20, p: 0.1}
    - {type: planckian_jitter, temperature_limit: [3000, 15000], p: 0.1}
    - type: coarse_dropout
      min_holes: 1
      max_holes: 8
      min_height: 4
      max_height: 16
      min_width: 4
      max_width: 16
      fill_value: 0
      p: 0.2
    - {type: randaugment, num_transforms: 2, magnitude: 5, p: 0.2}
    - {type: trivialaugment, p: 0.2}
  val_augmentations: []
  post_transforms:
    - type: normalize
    - type: to_tensor
  augmentation_p_schedule: {start_p: 0.2, end_p: 1, exponent_factor: 2}
model:
  load_from: null
  backbone_name: convnext_femto.d1_in1k
  pretrained: true
  in_channels: 3
  n_classes: 4
optimizer:
  lr_type: two_lrs
  type: adamw_8bit
  backbone_lr: 4.e-4
  fc_lr: 1.e-2
  weight_decay: 1e-3
  eps: 1.e-8
  betas: [0.9, 0.99]
scheduler: {anneal_strategy: linear, div_factor: 1000, final_div_factor: 10000, pct_start: 0.1}
training:
  compile: false
  save_checkpoints: true
  save_metrics: true
  epochs: 10
  accumulate_grad_batches: 2
  max_grad_norm: 1
  precision: 16
  mixing: {strategy: cutmix, p: 0.5, alpha: 1}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigurationError) as error:
        read_config(path)
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()]


def test_a_users_file_is_taken_as_it_is(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, AS_USERS_WRITE_IT))
    assert config.optimizer.backbone_lr == 4e-4
    assert config.optimizer.weight_decay == 1e-3
    assert config.dataset.data_fraction == 1.0
    assert config.training.mixing.strategy == "cutmix"
    assert len(config.dataset.train_augmentations) == 11


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "")) == Config()


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, AS_USERS_WRITE_IT), epochs=3, batch=7)
    assert (config.training.epochs, config.dataset.data_loaders.train_batch_size) == (3, 7)
    assert config.training.precision == 16


def test_a_configuration_as_run_can_be_run_again(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, AS_USERS_WRITE_IT))
    again = write(tmp_path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert read_config(again) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "classifier").glob("*.yaml")), ids=lambda path: path.name)
def test_committed_files_are_valid(path: Path) -> None:
    read_config(path)


def test_every_error_of_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    errors = refused(
        tmp_path,
        "sed: 3\n"
        "dataset:\n"
        "  image_size: -1\n"
        "  train_augmentations:\n"
        "    - {type: grid_distorsion}\n"
        "    - {type: median_blur, blur_limt: 3}\n"
        'training: {epochs: "12", compile: 1}\n',
    )
    assert [error.split(":")[0] for error in errors] == ["1", "3", "5", "6", "7", "7"]
    assert "did you mean 'seed'?" in errors[0]
    assert "dataset.image_size" in errors[1] and "greater than or equal to 8" in errors[1]
    assert "'grid_distortion'" in errors[2]
    assert "did you mean 'blur_limit'?" in errors[3] and "valid: blur_limit, p, type" in errors[3]
    assert "training.compile" in errors[4] and "boolean" in errors[4]
    assert "training.epochs" in errors[5] and '"12"' in errors[5]


def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = "training:\n  mixing:\n    strategy: mixup\n    p: 0.5\n    strategy: cutmix\n    p: 0.2\n"
    assert refused(tmp_path, text) == [
        "5: training.mixing.strategy: this key stands here a second time; the first is on line 3",
        "6: training.mixing.p: this key stands here a second time; the first is on line 4",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset:\n  image_size: 64\n  pre_transforms:\n    - type: longest_max_size\n      max_size: 32\n"
         "    - type: pad_if_needed\n",
         "5: dataset.pre_transforms[0].max_size: it is 32, but dataset.image_size is 64"),
        ("dataset:\n  pre_transforms: [{type: pad_if_needed}]\n", "2: dataset.pre_transforms: "),
        ("dataset:\n  post_transforms: [{type: to_tensor}, {type: normalize}]\n", "2: dataset.post_transforms: "),
        ("dataset:\n  image_size: 16\n  train_augmentations:\n    - {type: coarse_dropout, max_height: 17}\n",
         "4: dataset.train_augmentations[0].max_height: it is 17, larger than the picture"),
        ("dataset:\n  image_size: 16\n  train_augmentations:\n    - {type: coarse_dropout, max_holes: 300}\n",
         "4: dataset.train_augmentations[0].max_holes: it is 300; the picture has only 256 pixels"),
        ("model: {in_channels: 1}\ndataset:\n  val_augmentations:\n    - {type: rgb_shift}\n",
         "4: dataset.val_augmentations[0].type: rgb_shift changes colors, but model.in_channels is 1"),
        ("model: {in_channels: 1}\ndataset:\n  train_augmentations:\n"
         "    - {type: coarse_dropout, fill_value: [1, 2, 3]}\n",
         "4: dataset.train_augmentations[0].fill_value: "),
        ("model: {in_channels: 1}\ndataset:\n  post_transforms:\n    - {type: normalize, mean: [0, 0, 0]}\n",
         "4: dataset.post_transforms[0].mean: it has 3 values, but model.in_channels is 1"),
        ("dataset: {insert_background_p: 0.1}\n", "1: dataset.insert_background_p: "),
        ("dataset: {label_source: folders}\n", "1: dataset.label_source: folders needs directories.images"),
        ("directories: {images: x}\ndataset: {label_source: folders}\ncriterion: {type: binary_cross_entropy}\n",
         "2: dataset.label_source: it is folders, where a picture has one label"),
        ("criterion: {type: binary_cross_entropy}\ndataset: {data_loaders: {sampling: balanced}}\n",
         "2: dataset.data_loaders.sampling: a picture with several labels cannot be drawn for one of them alone"),
        ("criterion: {type: binary_cross_entropy}\ninference: {temperature_scaling: true}\n",
         "2: inference.temperature_scaling: it is defined for classes of which a picture has one"),
        ("directories: {images: x}\ndataset: {label_source: rotation}\nmodel: {n_classes: 3}\n",
         "3: model.n_classes: it is 3, but dataset.label_source rotation has 4 classes"),
        ("directories: {images: x}\ndataset: {label_source: folders, people_crops: true}\n",
         "2: dataset.people_crops: it needs a snapshot"),
        ("model: {n_classes: 3}\ncriterion: {class_weights: [1, 2]}\n", "2: criterion.class_weights: it has 2 values"),
        ("optimizer: {lr_type: two_lrs, backbone_lr: 1e-3}\n", "1: optimizer.lr_type: two_lrs needs fc_lr"),
        ("optimizer: {lr: 1e-3, fc_lr: 1e-3}\n", "1: optimizer.fc_lr: fc_lr belongs to lr_type two_lrs"),
        ("optimizer: {betas: [0.9, 1.0]}\n", "1: optimizer.betas: "),
        ("dataset:\n  post_transforms:\n    - {type: normalize, std: [1, 0, 1]}\n", "3: dataset.post_transforms[0]: "),
        ("training: [1\n", "2: this is not YAML: "),
        ("training: !!python/object:os.system {}\n", "1: training: Python objects are not allowed"),
        ("- a\n- b\n", "1: the file: "),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused_where_they_stand(
    tmp_path: Path, text: str, expected: str
) -> None:
    errors = refused(tmp_path, text)
    assert any(error.startswith(expected) for error in errors), errors


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_the_schedule_follows_its_formula() -> None:
    schedule = AugmentationSchedule(start_p=0.2, end_p=1.0, exponent_factor=2.0)
    assert [schedule.probability(epoch, 5) for epoch in range(5)] == pytest.approx([0.2, 0.25, 0.4, 0.65, 1.0])
    assert schedule.probability(0, 1) == 1.0


ATTACKS = {
    "a bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),  # 9 ** 12 values
    "a cycle": "dataset: &a {train_augmentations: [*a]}\n",
    "a cycle of keys": "model: &a\n  head: *a\n",
    "a well": "dataset: " + "[" * 5_000 + "]" * 5_000 + "\n",
    "a flood": "dataset: [" + "1, " * 500_000 + "1]\n",
    "an object": "model: !!python/object/apply:os.system ['true']\n",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_is_an_attack_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    """With little memory, so that what would not end ends here: PyYAML itself writes aliases out by reference."""
    path = tmp_path / "config.yaml"
    path.write_text(ATTACKS[name])
    read = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from training_jobs.classifier.config import read_config\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "try: read_config(Path(sys.argv[1]))\n"
        "except Exception as e: sys.exit(f'{type(e).__name__}: {e}')\n"
    )
    done = subprocess.run([sys.executable, "-c", read, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("ConfigurationError: "), done.stderr[-500:]
    assert "config.yaml:" in done.stderr


def test_what_make_new_pipeline_writes_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTSHIFT_PIPELINES", raising=False)
    monkeypatch.setattr(new_pipeline, "ROOT", tmp_path)
    training, _ = new_pipeline.create({"name": "shoes"})
    assert read_config(training).model.backbone_name == "resnet18.a1_in1k"
