"""An experiment folder in the bottle: what training or an import leaves, and what conversion puts beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError
from jobkit.model_spec import Spec, parse_spec
from jobkit.paths import checked_name

IMPORTED = "imported_"
"""What the names of experiments that `import_weights` makes begin with."""


@dataclass(frozen=True)
class Experiment:
    """The folder `models/<group>/<experiment>`; all properties are keys in the bottle.

    The names of a training's folders are those that users know: `v__{n}_{mode}_{arch}_{batch}_{decay}`.
    """

    folder: str

    def __post_init__(self) -> None:
        """Check the folder's form.

        Raises:
            ConfigurationError: it is not `models/<group>/<experiment>`.
        """
        parts = PurePosixPath(self.folder).parts
        if len(parts) != 3 or parts[0] != "models" or self.folder != "/".join(parts):
            raise ConfigurationError(f"{self.folder!r} is not the folder of an experiment: models/<group>/<experiment>")
        checked_name(parts[1], "group")
        checked_name(parts[2], "experiment")

    @property
    def group(self) -> str:
        """The group that it was trained for."""
        return PurePosixPath(self.folder).parts[1]

    @property
    def is_imported(self) -> bool:
        """Whether its model came from elsewhere: its TorchScript is then a stranger's program."""
        return PurePosixPath(self.folder).name.startswith(IMPORTED)

    @property
    def best_checkpoint(self) -> str:
        """Weights of the best epoch."""
        return f"{self.folder}/checkpoints/best.ckpt"

    @property
    def last_checkpoint(self) -> str:
        """State of the last finished epoch; training resumes from it."""
        return f"{self.folder}/checkpoints/last.ckpt"

    @property
    def best_weights(self) -> str:
        """Of a detector: the best epoch's checkpoint, as its library saves it, without what only training needs."""
        return f"{self.folder}/checkpoints/best.pt"

    @property
    def last_weights(self) -> str:
        """Of a detector: its library's checkpoint of the last finished epoch; training resumes from it."""
        return f"{self.folder}/checkpoints/last.pt"

    @property
    def history(self) -> str:
        """Of a detector: one JSON object a line, one line a finished epoch."""
        return f"{self.folder}/history.jsonl"

    @property
    def config(self) -> str:
        """The configuration as run."""
        return f"{self.folder}/config.yaml"

    @property
    def metrics(self) -> str:
        """Metrics of the best epoch and what reproduces the run."""
        return f"{self.folder}/metrics.json"

    @property
    def spec(self) -> str:
        """The model's interface (`jobkit.model_spec.ModelSpec`)."""
        return f"{self.folder}/model.json"

    @property
    def torchscript(self) -> str:
        """The model of the best epoch as TorchScript: float32 [N, C, H, W] -> logits."""
        return f"{self.folder}/torchscripts/model.pt"

    @property
    def run(self) -> str:
        """Which task instance trains it, and on what."""
        return f"{self.folder}/run.json"

    @property
    def onnx(self) -> str:
        """The exported graph."""
        return f"{self.folder}/onnx/model.onnx"

    @property
    def embeddings(self) -> str:
        """What a head is verified with: .npy, float32 [n, features]."""
        return f"{self.folder}/embeddings.npy"

    @property
    def inputs(self) -> str:
        """What a model of arrays is verified with: .npy, float32 [n, ...]; where it is missing, random numbers are."""
        return f"{self.folder}/inputs.npy"

    @property
    def own_graph(self) -> str:
        """The graph of one's own that was imported: it is exported as it is."""
        return f"{self.folder}/own/model.onnx"

    @property
    def expected(self) -> str:
        """Reference outputs of the users' own code, where they came with the weights."""
        return f"{self.folder}/expected.npz"

    @property
    def verification(self) -> str:
        """What `verify_onnx` found; names the graph by its sha256."""
        return f"{self.folder}/onnx/verification.json"

    @property
    def reference(self) -> str:
        """Inputs and outputs that were verified: `inputs` float32 [n, C, H, W], `outputs`, `pictures`."""
        return f"{self.folder}/onnx/verified.npz"


def read_spec(bottle: Bottle, experiment: Experiment) -> Spec:
    """Return the experiment's model spec.

    Raises:
        DataValidationError: there is none, or it is not valid.
    """
    return parse_spec(bottle.read(experiment.spec), f"{bottle}/{experiment.spec}")
