"""Operators of TensorFlow that a graph may hold here: those that only compute on tensors (pure).

An allow list. What is missing reads or writes files, calls Python, opens sockets, keeps state between calls, works on
text, or has no counterpart in ONNX; a graph with it would not be converted anyway.
"""

from __future__ import annotations

from typing import Final

# fmt: off
COMPUTING: Final = frozenset("""
    Abs Acos Acosh Add AddN AddV2 AdjustContrastv2 AdjustHue AdjustSaturation All Any ArgMax ArgMin Asin Asinh Atan
    Atan2 Atanh AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddV1 Bincount
    BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs BroadcastTo Cast Ceil CheckNumerics ClipByValue
    CombinedNonMaxSuppression ComplexAbs Concat ConcatV2 Const Conv1D Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 Cos Cosh CropAndResize Cumprod Cumsum DenseBincount DepthToSpace DepthwiseConv2dNative Div
    DivNoNan DynamicPartition DynamicStitch Einsum Elu EmptyTensorList EnsureShape Equal Erf Exp ExpandDims
    ExtractImagePatches FFT FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Fill
    Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater
    GreaterEqual Identity IdentityN Invert InvertPermutation IsFinite IsInf IsNan LRN LeakyRelu LeftShift Less
    LessEqual LinSpace Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul MatrixBandPart MatrixDeterminant
    MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse
    MatrixSetDiagV3 Max MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax Maximum Mean Min Minimum MirrorPad Mod Mul
    MulNoNan Multinomial Neg NextAfter NoOp NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
    NonMaxSuppressionV5 NotEqual OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch Placeholder
    PlaceholderWithDefault Pow PreventGradient Prod RFFT RFFT2D RandomShuffle RandomStandardNormal RandomUniform
    RandomUniformInt Range Rank RealDiv Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic ResizeBilinear
    ResizeNearestNeighbor ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScatterNd SegmentMax SegmentMean
    SegmentMin SegmentProd SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Softmax
    SoftmaxCrossEntropyWithLogits Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square
    SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tan Tanh TensorListFromTensor TensorListGetItem
    TensorListLength TensorListReserve TensorListResize TensorListSetItem TensorListStack TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate Tile TopKV2 Transpose TruncateDiv Unique
    UniqueWithCounts Unpack UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Where Xdivy
    Xlogy ZerosLike
""".split())  # noqa: SIM905 (a page of words, not a list)
# fmt: on
CALLING: Final = frozenset(
    "Case If PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile While".split()  # noqa: SIM905
)
"""Those that call functions of the file, which are looked at too."""
LOOPING: Final = frozenset(("Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch"))
"""Control flow as TensorFlow 1 wrote it."""
READING: Final = frozenset(("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp"))
"""Those that read variables, whose values come from the checkpoint."""

ALLOWED: Final = COMPUTING | CALLING | LOOPING | READING

_INSTEAD: Final = {
    "Lookup": "holds a table that is filled from elsewhere; look words up before the model",
    "HashTable": "holds a table that is filled from elsewhere; look words up before the model",
    "PyFunc": "calls Python, which is not in the file; write it in TensorFlow's operators",
    "EagerPyFunc": "calls Python, which is not in the file; write it in TensorFlow's operators",
    "String": "works on text; do that before the model",
    "Decode": "decodes files; do that before the model",
    "Variable": "is a variable of TensorFlow 1; save the model again with TensorFlow 2",
}
_REACHING: Final = ("Read", "Write", "Save", "Restore", "Matching", "Merge", "Iterator", "Summary", "Dataset", "Delete")


def refused(operator: str) -> str:
    """Why an operator that is not allowed is not, and what to do, after its name."""
    for beginning, words in _INSTEAD.items():
        if operator.startswith(beginning):
            return words
    if any(word in operator for word in _REACHING):
        return "reaches files or data outside the model; export the model without it"
    return "has no conversion to ONNX; build the model without it, or do its work before or after the model"
