"""Classifiers' heads to ONNX: `python torch2onnx.py [--weights W] [--output M] [--activation sigmoid]`.

Without `--weights` and `--output` both heads are converted, the binary one and the one of several labels, as far as
their weights are there; the options count for both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import ROOT, run

HEADS = {"binary": "model_binary.pth", "multilabel": "model_multilabel.pth"}
WEIGHTS = Path("training/weights/CT-RATE")

given = {token.partition("=")[0] for token in sys.argv[1:]}
found = [name for name, file in HEADS.items() if (ROOT / WEIGHTS / file).is_file()]
options, worst = list(sys.argv), 0
for name in found if found and not given & {"--weights", "--output", "--help", "-h"} else ["binary"]:
    sys.argv = list(options)
    try:
        run(
            "conversion_jobs.torch2onnx",
            family="head",
            weights=WEIGHTS / HEADS[name],
            output=Path(f"model_repository_running/{name}_onnx/1/model.onnx"),
        )
    except SystemExit as ended:
        worst = max(worst, int(ended.code or 0))
sys.exit(worst)
