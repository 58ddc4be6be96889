"""Every setting of ranker, as one tree of frozen dataclasses, and how to load it.

A config file is Python and defines ``get_config(variant="")``; it imports this package
and nothing else of ranker. `load` runs it and applies typed overrides from the command
line. The comment after a field is its help text and gives its unit.
"""

from dataclasses import replace as replace

from ranker.config.data import ONE_PASSAGE as ONE_PASSAGE
from ranker.config.data import TEMPLATE_BAR as TEMPLATE_BAR
from ranker.config.data import TEMPLATES as TEMPLATES
from ranker.config.data import ClickRules as ClickRules
from ranker.config.data import Data as Data
from ranker.config.data import Judge as Judge
from ranker.config.data import Mesh as Mesh
from ranker.config.data import Negatives as Negatives
from ranker.config.data import Passages as Passages
from ranker.config.data import PassageScore as PassageScore
from ranker.config.data import Role as Role
from ranker.config.data import Template as Template
from ranker.config.data import Text as Text
from ranker.config.data import World as World
from ranker.config.loading import REQUIRED as REQUIRED
from ranker.config.loading import beside as beside
from ranker.config.loading import check_given as check_given
from ranker.config.loading import from_dict as from_dict
from ranker.config.loading import load as load
from ranker.config.loading import to_dict as to_dict
from ranker.config.models import FREE_FIELDS as FREE_FIELDS
from ranker.config.models import Decoder as Decoder
from ranker.config.models import DecoderFamily as DecoderFamily
from ranker.config.models import DType as DType
from ranker.config.models import Encoder as Encoder
from ranker.config.models import EncoderFamily as EncoderFamily
from ranker.config.models import Model as Model
from ranker.config.models import Pretrained as Pretrained
from ranker.config.models import ReduceDType as ReduceDType
from ranker.config.models import Remat as Remat
from ranker.config.models import Rope as Rope
from ranker.config.models import RopeScaling as RopeScaling
from ranker.config.pipeline import Pipeline as Pipeline
from ranker.config.pipeline import Recipe as Recipe
from ranker.config.pipeline import Variant as Variant
from ranker.config.stages import Cascade as Cascade
from ranker.config.stages import Evaluate as Evaluate
from ranker.config.stages import Export as Export
from ranker.config.stages import Given as Given
from ranker.config.stages import Judging as Judging
from ranker.config.stages import Onnx as Onnx
from ranker.config.stages import Score as Score
from ranker.config.stages import ScoreFormat as ScoreFormat
from ranker.config.stages import Stage as Stage
from ranker.config.stages import Train as Train
from ranker.config.training import DEV_LANGUAGE as DEV_LANGUAGE
from ranker.config.training import LORA_TARGETS as LORA_TARGETS
from ranker.config.training import NO_LORA as NO_LORA
from ranker.config.training import Batch as Batch
from ranker.config.training import Distillation as Distillation
from ranker.config.training import DistillationLoss as DistillationLoss
from ranker.config.training import LambdaScheme as LambdaScheme
from ranker.config.training import Language as Language
from ranker.config.training import Loop as Loop
from ranker.config.training import Lora as Lora
from ranker.config.training import LoraTarget as LoraTarget
from ranker.config.training import MarginLoss as MarginLoss
from ranker.config.training import ObjectiveSettings as ObjectiveSettings
from ranker.config.training import Optim as Optim
from ranker.config.training import Optimiser as Optimiser
from ranker.config.training import Rank as Rank
from ranker.config.training import RankLoss as RankLoss
from ranker.config.training import Schedule as Schedule
from ranker.errors import ConfigError as ConfigError
