"""Convert the last model of a group: `python cls/classification/export.py --group season`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run_with_bottle

run_with_bottle("conversion_jobs.convert_group")
