"""Load a group from the collect service: `python cls/classification/load_group.py --group season`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run_with_bottle

run_with_bottle("training_jobs.pull_dataset", pipeline="by_hand")
