"""Define the contracts between the core and every component: one file per kind, settings and runtime contract together.

Each file holds the settings class of a kind and the contract of what is built from it. A settings class answers what a
component needs, provides and costs without importing torch, so that recipes are listed, checked and priced instantly.

Letters in shapes: B batch, C channels, H W image or latent, N tokens, K kept tokens, D width, d head width. t grows
with noise in every schedule; sigma is the noise level in variance-exploding coordinates (x / alpha, sigma / alpha). The
null label is `num_classes`, for any number of classes; an unconditional model has 0 classes and only that label.
"""

from sddit.interfaces.attention import Attention, AttentionParams
from sddit.interfaces.backbone import BackboneParams
from sddit.interfaces.batch import Batch, Context, Draws, Outputs, Tokens, View
from sddit.interfaces.codec import Codec, CodecParams
from sddit.interfaces.component import Check, CheckContext, CheckSkipped, Component, Measurement, Selected
from sddit.interfaces.dataset import (
    Dataset,
    DatasetParams,
    DrawnDataset,
    EncodedImages,
    KeepingDataset,
    LabelledDataset,
    Split,
    TargetDataset,
)
from sddit.interfaces.facts import (
    CodecFacts,
    ColourMap,
    Cost,
    DataFacts,
    Matrix,
    Needs,
    Network,
    Shapes,
    Tap,
    ViewSpec,
    Want,
)
from sddit.interfaces.features import (
    EvaluateMode,
    FeatureExtractor,
    FeatureParams,
    FigureAccumulator,
    FigureExtractor,
    ModeOption,
)
from sddit.interfaces.loss import Loss, LossParams, Monitor
from sddit.interfaces.noise_schedule import NoiseSchedule, NoiseScheduleParams, Scalings
from sddit.interfaces.optimizer import Optimizer, OptimizerParams, ParameterRole, Role
from sddit.interfaces.pair_sampler import PairSampler, PairSamplerParams
from sddit.interfaces.params import PLACE, BackboneView, LossView, Params, RecipeView, SlotView
from sddit.interfaces.sampler import (
    Denoise,
    Denoiser,
    Guidance,
    GuidanceParams,
    Path,
    Prediction,
    Sampler,
    SamplerParams,
    SecondNetwork,
)
from sddit.interfaces.tracker import Tracker, TrackerParams
from sddit.interfaces.weight_files import Sha256, file_sha256, files_sha256
from sddit.interfaces.weights import NOTHING, WeightDescription, WeightFormat

__all__ = [
    "Attention",
    "AttentionParams",
    "BackboneParams",
    "BackboneView",
    "Batch",
    "Check",
    "CheckContext",
    "CheckSkipped",
    "Codec",
    "CodecFacts",
    "CodecParams",
    "ColourMap",
    "Component",
    "Context",
    "Cost",
    "DataFacts",
    "Dataset",
    "DatasetParams",
    "Denoise",
    "Denoiser",
    "DrawnDataset",
    "Draws",
    "EncodedImages",
    "EvaluateMode",
    "FeatureExtractor",
    "FeatureParams",
    "FigureAccumulator",
    "FigureExtractor",
    "KeepingDataset",
    "Guidance",
    "GuidanceParams",
    "LabelledDataset",
    "Loss",
    "LossParams",
    "Measurement",
    "ModeOption",
    "Monitor",
    "NOTHING",
    "PLACE",
    "Needs",
    "Network",
    "NoiseSchedule",
    "NoiseScheduleParams",
    "Optimizer",
    "OptimizerParams",
    "ParameterRole",
    "Role",
    "Matrix",
    "Outputs",
    "PairSampler",
    "PairSamplerParams",
    "Params",
    "Path",
    "Prediction",
    "LossView",
    "RecipeView",
    "SlotView",
    "Sampler",
    "SamplerParams",
    "SecondNetwork",
    "Scalings",
    "Selected",
    "Sha256",
    "Shapes",
    "Split",
    "Tap",
    "TargetDataset",
    "Tokens",
    "Tracker",
    "TrackerParams",
    "View",
    "ViewSpec",
    "Want",
    "WeightDescription",
    "WeightFormat",
    "file_sha256",
    "files_sha256",
]
