"""Options of the conversion jobs, which the sections `verify`, `convert` and `publish` of a pipeline file have too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nightshift_common.names import ModelName
from nightshift_common.options.base import Options

Precision = Literal["int8", "fp16", "mixed", "fp32"]
Target = Literal["onnx", "tensorrt"]
Opset = Annotated[int, Field(ge=12, le=20, title="Opset")]
ExporterName = Literal["torchscript", "dynamo"]
Exporter = Literal["auto", ExporterName]
OPSET = 17  # has layer norm as one node, which FP16 needs
MaxBatchSize = Annotated[int, Field(ge=1, le=1024, title="Largest batch")]
MAX_BATCH_SIZE = 8
MaxLatency = Annotated[float, Field(gt=0, title="Latency limit")]
TensorRTVersion = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+(\.\d+)?$", title="TensorRT of the serving Triton")]
SERVING_TENSORRT = "11.1.0.106"
MAX_PLAN_SAMPLES = 1024
PlanSamples = Annotated[int, Field(ge=1, le=MAX_PLAN_SAMPLES)]


class ToleranceOptions(Options):
    """How closely a graph has to answer as its source model does."""

    samples: int = Field(32, ge=1, le=4096)
    """golden pictures that both are asked about, taken from all classes in turn"""
    atol: float = Field(1e-4, gt=0)
    """absolute difference that is allowed"""
    rtol: float = Field(1e-3, ge=0)
    """difference that is allowed, relative to the source's output"""


class VerifyOptions(ToleranceOptions):
    """How closely the ONNX graph has to answer as the model does."""

    top1_agreement: float = Field(0.99, ge=0, le=1)
    """share of pictures with the same first class (of several labels: that show the same classes), at least"""


class LatencyOptions(Options):
    """How fast a plan has to be on its GPU."""

    goal_ms: float = Field(1000, gt=0)
    """a plan whose 99th percentile of one picture is above this gets a warning"""
    limit_ms: float = Field(10_000, gt=0)
    """a plan whose 99th percentile of one picture is above this is refused"""


class ExportOptions(Options):
    """How a model becomes a graph."""

    opset: Opset = OPSET
    """ONNX opset; 17 has layer norm as one node, which FP16 needs"""
    dynamic_size: bool = Field(False, title="Free height and width")
    """the sizes behind the channels stay free in the graph and in Triton; a plan then needs --size_profile"""
    exporter: Exporter = "auto"
    """torch's exporter: auto takes torchscript, and dynamo (on torch.export) where that one's graph is not right"""


class TrtexecOptions(Options):
    """How trtexec is run on a GPU worker."""

    timeout: float = Field(3600, gt=0)
    """seconds that one run of trtexec may take"""
    trtexec: str = "trtexec"
    """the program"""
    nvidia_smi: str = "nvidia-smi"
    """the program"""


class BuildOptions(TrtexecOptions):
    """How a plan is built."""

    precision: Precision = "fp16"
    """what is tried first; where its answers are too far off: int8, fp16, then named layers in FP32, then fp32"""
    max_batch: int = Field(MAX_BATCH_SIZE, ge=1, le=1024)
    """the largest batch"""
    min_batch: int = Field(1, ge=1, le=1024)
    """the smallest batch"""
    opt_batch: int = Field(1, ge=1, le=1024, title="Best batch")
    """the batch that the plan is to be fastest at: the one that is served most"""
    more_profiles: str = Field("", pattern=r"^$|^\d+-\d+-\d+(,\d+-\d+-\d+)*$", title="Further profiles")
    """further optimization profiles: smallest, best and largest batch of each, say 8-8-8,16-32-32; from TensorRT 10"""
    size_profile: str = Field("", pattern=r"^$|^\d+(x\d+)*(,\d+(x\d+)*){2}$", title="Sizes of the plan")
    """for a graph with free sizes: the smallest, best and largest, say 160x160,224x224,448x448"""
    workspace: int = Field(4096, ge=16)
    """memory that TensorRT may use while it builds, MiB"""


class PlanOptions(BuildOptions):
    """How a plan is built for a server."""

    serving_tensorrt: TensorRTVersion
    """version of TensorRT in the serving Triton: a plan loads only into the very build that made it"""
    version_compatible: bool = False
    """from 8.6: a plan that later versions load, too, in a Triton that is started so and runs the plan's program"""
    strip_weights: bool = False
    """from 10.0: a plan without weights beside it, for programs that put them in; Triton cannot, so it is not served"""


class ModelOptions(Options):
    """Which model of the model storage."""

    model_name: ModelName = Field(title="Model name")
    """name in the model storage, in Triton and in MLflow's registry"""


class PackageOptions(ModelOptions):
    """What is packaged for Triton."""

    target: Target = "onnx"
    """what is served: the graph, or a plan of it"""
    max_batch_size: MaxBatchSize = MAX_BATCH_SIZE
    """the largest batch that Triton puts together"""
