"""Train a classifier from a configuration file: `python main.py --config_filename <file>`."""

from nightshift_common.earlier_scripts import run

run("training_jobs.train_classifier")
