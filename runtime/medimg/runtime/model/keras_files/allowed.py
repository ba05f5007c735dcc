"""What a model file may name: the frameworks' own objects that compute and do nothing else.

Every list is of names, not of exclusions: what is not here is foreign. Left out on purpose are layers that
run code from the file (`Lambda`, `TorchModuleWrapper`, `FlaxLayer`, `JaxLayer`), open other files
(`TFSMLayer`, `StringLookup`, `IntegerLookup`, `TextVectorization`) or call functions by name (`Map`, `Scan`,
`Cond`, `WhileLoop`), and in TensorFlow graphs every operation on files, tables, queues, iterators, hosts,
devices or Python. Names stand in all the spellings that Keras 2.0 to 3.15 wrote.
"""


def names(text: str) -> frozenset[str]:
    """Make a list of a text of names."""
    return frozenset(text.split())


MODULES = (
    "keras",
    "tf_keras",
    "tensorflow.keras",
    "tensorflow.python.keras",
    "tensorflow.python.ops.init_ops",
    "tensorflow.python.ops.init_ops_v2",
    "builtins",
)
"""The packages, with everything under them, that objects of the frameworks themselves come from."""

LAYERS = names(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D
    AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization BatchNormalizationV1
    BatchNormalizationV2 Bidirectional CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization
    Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CustomScaleLayer CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Equalization Flatten Functional GRU GRUCell
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
    Identity InputLayer LSTM LSTMCell LayerNormalization LayerScale LeakyReLU LocallyConnected1D
    LocallyConnected2D Masking MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MixUp Model MultiHeadAttention Multiply Normalization PReLU Permute Pipeline
    RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur
    RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom
    ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D Sequential SimpleRNN SimpleRNNCell SlicingOpLambda Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
    StochasticDepth Subtract SyncBatchNormalization TFOpLambda TensorFlowOpLayer ThresholdedReLU
    TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D
    ZeroPadding3D
    """
)

OPERATIONS = names(
    """
    Abs Absolute All Amax Amin Any Arange Argmax Argmin Array Average AveragePool BatchNorm BroadcastTo
    Cast Ceil Clip Conv ConvTranspose ConvertToTensor Copy CropImages Cumsum DepthToSpace DepthwiseConv
    Diff Divide DotProductAttention Einsum Elu Equal Erf Exp ExpandDims Expm1 Flip Floor FloorDivide Full
    FullLike Gelu GetItem Greater GreaterEqual HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu Less
    LessEqual Log Log10 Log1p Log2 LogSigmoid LogSoftmax LogicalAnd LogicalNot LogicalOr Logsumexp Matmul
    Max MaxPool Mean Min Mod Moments Moveaxis Negative Normalize NotEqual OneHot OnesLike Outer Pad
    PadImages Power Prod RGBToGrayscale RMSNorm Ravel Reciprocal Relu Relu6 Repeat Resize Roll Round Rsqrt
    SaturateCast Selu SeparableConv Sigmoid Sign Silu Slice Softplus Softsign SpaceToDepth Split Sqrt
    Square Squeeze Stack Std StopGradient Sum Swapaxes Take Tanh Tensordot Tile Transpose TrueDivide
    Unstack Var Where ZerosLike
    """
)
"""Classes of `keras.ops` that stand as nodes in a functional model of Keras 3."""

HELPERS = names(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal
    VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg RadialConstraint
    UnitNorm DTypePolicy DTypePolicyMap FloatDTypePolicy Policy PolicyV1 SeedGenerator RandomSeedGenerator
    """
)
"""Initialisers, regularisers, constraints and data-type policies."""

STRUCTURE = names(
    """
    TensorShape __bytes__ __ellipsis__ __keras_tensor__ __numpy__ __set__ __slice__ __tensor__ __tuple__
    """
)
"""Plain values that Keras writes as if they were objects."""

ACTIVATIONS = names(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softmax_v2
    softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
    """
)

OBJECTS = LAYERS | OPERATIONS | HELPERS | STRUCTURE
"""Every class name that a configuration may hold."""

HELPER_NAMES = HELPERS | names(
    """
    constant glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal lecun_uniform normal
    one ones orthogonal random_normal random_uniform truncated_normal uniform variance_scaling zero zeros
    l1 l1_l2 l2 l1l2 orthogonal_regularizer max_norm maxnorm min_max_norm non_neg nonneg radial_constraint
    unit_norm unitnorm
    """
)
"""The same helpers where a configuration holds a bare name."""

TENSORFLOW_FUNCTIONS = names(
    """
    __operators__.add __operators__.getitem __operators__.ne abs add cast clip_by_value concat constant
    convert_to_tensor divide expand_dims identity image.adjust_brightness image.adjust_contrast
    image.central_crop image.convert_image_dtype image.crop_to_bounding_box image.flip_left_right
    image.grayscale_to_rgb image.pad_to_bounding_box image.per_image_standardization image.resize
    image.resize_with_crop_or_pad image.resize_with_pad image.rgb_to_grayscale keras.backend.clip
    keras.backend.mean linalg.l2_normalize linalg.matmul math.abs math.add math.argmax math.divide
    math.divide_no_nan math.exp math.floor math.floordiv math.l2_normalize math.log math.maximum
    math.minimum math.multiply math.negative math.pow math.reciprocal math.reduce_max math.reduce_mean
    math.reduce_min math.reduce_std math.reduce_sum math.reduce_variance math.rsqrt math.scalar_mul
    math.sigmoid math.sqrt math.square math.squared_difference math.subtract math.tanh math.truediv matmul
    multiply nn.avg_pool nn.avg_pool2d nn.batch_normalization nn.bias_add nn.conv2d nn.depthwise_conv2d
    nn.elu nn.gelu nn.l2_normalize nn.leaky_relu nn.local_response_normalization nn.log_softmax
    nn.max_pool nn.max_pool2d nn.moments nn.relu nn.relu6 nn.selu nn.sigmoid nn.silu nn.softmax
    nn.softplus nn.swish nn.tanh ones_like pad pow realdiv repeat reshape reverse shape slice split sqrt
    square squeeze stack stop_gradient strided_slice subtract tile transpose truediv unstack where
    zeros_like
    """
)
"""TensorFlow functions that a functional model of Keras 2 may call by name."""

GRAPH_OPS = names(
    """
    Abs Acos Acosh Add AddN AddV2 AdjustContrastv2 AdjustHue AdjustSaturation All Any ArgMax ArgMin Asin
    Asinh Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Atan Atan2 Atanh AvgPool
    AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddV1 Bincount Bitcast
    BitwiseAnd
    BitwiseOr BitwiseXor BroadcastArgs BroadcastGradientArgs BroadcastTo Case Cast Ceil CheckNumerics
    ClipByValue Concat ConcatOffset ConcatV2 Const Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2
    Cos Cosh CropAndResize Cumprod Cumsum DenseBincount DepthToSpace DepthwiseConv2dNative
    DisableCopyOnRead Div DivNoNan DynamicPartition DynamicStitch Einsum Elu Empty EnsureShape Equal Erf
    Erfc Exp ExpandDims Expm1 ExtractImagePatches FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsPerChannel Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual HSVToRGB Identity IdentityN If
    ImageProjectiveTransformV2 ImageProjectiveTransformV3 Inv InvertPermutation IsFinite IsInf IsNan
    L2Loss LRN LeakyRelu LeftShift Less LessEqual LinSpace Log Log1p LogSoftmax LogicalAnd LogicalNot
    LogicalOr LoopCond MatMul MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
    MatrixDiagV2 MatrixDiagV3 Max MaxPool MaxPool3D MaxPoolV2 Maximum Mean Min Minimum MirrorPad Mod Mul
    MulNoNan Neg NextAfter NoOp NotEqual OneHot OnesLike Pack Pad PadV2 PartitionedCall Placeholder
    PlaceholderWithDefault Pow PreventGradient Prod RGBToHSV RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt Range Rank ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ResourceGather ReverseV2 RightShift Rint
    RngReadAndSkip RngSkip Roll Round Rsqrt ScaleAndTranslate ScatterNd Select SelectV2 Selu Shape ShapeN
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV
    Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall StatefulStandardNormalV2 StatefulUniform
    StatefulUniformFullInt StatefulUniformInt StatelessIf StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 StatelessRandomUniformInt StatelessRandomUniformIntV2
    StatelessRandomUniformV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessWhile
    StopGradient StridedSlice Sub Sum Tan Tanh TensorListElementShape TensorListFromTensor
    TensorListGetItem TensorListLength TensorListReserve TensorListResize TensorListSetItem
    TensorListStack TensorScatterUpdate Tile TopKV2 Transpose TruncateDiv TruncateMod TruncatedNormal
    Unpack UnsortedSegmentMax UnsortedSegmentSum VarHandleOp VarIsInitializedOp VariableShape Where While
    Xdivy Xlogy ZerosLike
    """
)
"""Operations of SavedModels and `TensorFlowOpLayer`: arithmetic, control flow, random numbers, variables."""
