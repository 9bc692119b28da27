"""Non-maximum suppression put behind the raw outputs of a detector, inside its ONNX graph."""

from __future__ import annotations

from typing import Any

from jobkit.model_spec import NonMaxSuppression


def suppress(model: Any, how: NonMaxSuppression) -> None:
    """Replace the output `raw` [N, 4 + classes, anchors] of an `onnx.ModelProto` by `detections` [N, K, 6].

    A model with masks loses `coefficients` [N, 32, anchors] to those of the detections, [N, K, 32]; `protos` stay.

    ONNX's NonMaxSuppression names the boxes that are left, as many as there are. For an output of one size a picture
    their scores are scattered into zeros, of which the K highest are taken; rows beyond the boxes become zero.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    raw = next(value for value in graph.output if value.name == "raw")
    rows, anchors = (dim.dim_value for dim in raw.type.tensor_type.shape.dim[1:])
    classes, kept = rows - 4, min(how.max_detections, anchors * (rows - 4))
    masks = next((value for value in graph.output if value.name == "coefficients"), None)

    def constant(name: str, kind: int, values: list[float], dims: list[int] | None = None) -> str:
        graph.initializer.append(
            helper.make_tensor(f"nms/{name}", kind, [len(values)] if dims is None else dims, values)
        )
        return f"nms/{name}"

    def node(operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        names = [output if output in ("detections", "kept_coefficients") else f"nms/{output}" for output in outputs]
        graph.node.append(helper.make_node(operator, inputs, names, name=f"nms/{outputs[0]}", **attributes))
        return names[0]

    node("Split", ["raw", constant("parts", TensorProto.INT64, [4, classes])], "xywh", "scores", axis=1)
    boxes = node("Transpose", ["nms/xywh"], "boxes", perm=[0, 2, 1])
    chosen = node(
        "NonMaxSuppression",
        [boxes, "nms/scores", constant("most", TensorProto.INT64, [kept]),
         constant("iou", TensorProto.FLOAT, [how.iou_threshold]),
         constant("score", TensorProto.FLOAT, [how.confidence_threshold])],
        "chosen", center_point_box=1,
    )  # fmt: skip
    zeros = node(
        "ConstantOfShape", [node("Shape", ["nms/scores"], "shape")], "zeros",
        value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
    )  # fmt: skip
    left = node("ScatterND", [zeros, chosen, node("GatherND", ["nms/scores", chosen], "chosen_scores")], "left")
    flat = node("Reshape", [left, constant("flat", TensorProto.INT64, [0, -1])], "flattened")
    node("TopK", [flat, constant("k", TensorProto.INT64, [kept])], "best", "index", axis=1, largest=1, sorted=1)
    per_class = constant("anchors", TensorProto.INT64, [anchors], [])
    label = node("Cast", [node("Div", ["nms/index", per_class], "class")], "label", to=TensorProto.FLOAT)
    anchor = node("Mod", ["nms/index", per_class], "anchor")
    last = constant("last", TensorProto.INT64, [2])
    column = node("Unsqueeze", [anchor, last], "column")
    score = node("Unsqueeze", ["nms/best", last], "score_column")
    filled = node(
        "Cast", [node("Greater", [score, constant("nothing", TensorProto.FLOAT, [0.0])], "is_filled")], "filled",
        to=TensorProto.FLOAT,
    )  # fmt: skip

    def rows_of(values: str, width: int, name: str) -> str:
        """Take the kept anchors' rows of `values` [N, anchors, width]."""
        where = node("Expand", [column, constant(f"{name}_width", TensorProto.INT64, [1, 1, width])], f"{name}_index")
        return node("GatherElements", [values, where], f"{name}_kept", axis=1)

    node("Split", [rows_of(boxes, 4, "box"), constant("halves", TensorProto.INT64, [2, 2])], "center", "size", axis=2)
    half = node("Mul", ["nms/size", constant("half", TensorProto.FLOAT, [0.5])], "half_size")
    low, high = node("Sub", ["nms/center", half], "low"), node("Add", ["nms/center", half], "high")
    label_column = node("Unsqueeze", [label, last], "label_column")
    every = node("Concat", [low, high, score, label_column], "every", axis=2)
    node("Mul", [every, filled], "detections")
    outputs = [_output("detections", [kept, 6])]
    if masks is not None:
        width = masks.type.tensor_type.shape.dim[1].dim_value
        coefficients = node("Transpose", ["coefficients"], "coefficients_of_anchors", perm=[0, 2, 1])
        node("Mul", [rows_of(coefficients, width, "mask"), filled], "kept_coefficients")
        outputs.append(_output("kept_coefficients", [kept, width]))
        outputs += [value for value in graph.output if value.name == "protos"]
    del graph.output[:]
    graph.output.extend(outputs)


def _output(name: str, sizes: list[int]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *sizes])
