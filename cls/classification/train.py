"""Train on what was loaded: `python cls/classification/train.py --cat season --epochs 1 --batch 4`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run_with_bottle

run_with_bottle("training_jobs.train_classifier")
