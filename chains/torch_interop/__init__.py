"""Moving between PyTorch and JAX: optimizers, their states, and parameters.

Nothing here imports PyTorch; its objects are read without it. `export_state` returns tensors if it is given an
optimizer.
"""

from ._averages import export_averages as export_averages
from ._checkpoint import Checkpoint as Checkpoint
from ._checkpoint import SavedOptimizer as SavedOptimizer
from ._checkpoint import inspect_checkpoint as inspect_checkpoint
from ._correspondence import Correspondence as Correspondence
from ._correspondence import correspondence as correspondence
from ._export_plateau import export_plateau as export_plateau
from ._export_state import export_state as export_state
from ._import_state import import_state as import_state
from ._layouts import CONV as CONV
from ._layouts import CONV_TRANSPOSE as CONV_TRANSPOSE
from ._layouts import CONV_TRANSPOSE_KERNEL as CONV_TRANSPOSE_KERNEL
from ._layouts import FLAT as FLAT
from ._layouts import HEADS as HEADS
from ._layouts import HF_CONV1D as HF_CONV1D
from ._layouts import IDENTITY as IDENTITY
from ._layouts import LINEAR as LINEAR
from ._layouts import MERGED_HEADS as MERGED_HEADS
from ._layouts import Layout as Layout
from ._layouts import equinox_conv_transpose as equinox_conv_transpose
from ._modules import BATCH_NORM as BATCH_NORM
from ._modules import GRU_CELL as GRU_CELL
from ._modules import HF_GPT2 as HF_GPT2
from ._modules import LSTM_CELL as LSTM_CELL
from ._modules import MULTIHEAD_ATTENTION as MULTIHEAD_ATTENTION
from ._modules import PRELU as PRELU
from ._modules import RNN_CELL as RNN_CELL
from ._modules import TORCH_NN as TORCH_NN
from ._modules import fused_attention as fused_attention
from ._modules import recurrent as recurrent
from ._modules import separate_attention as separate_attention
from ._names import export_params as export_params
from ._names import import_params as import_params
from ._names import torch_labels as torch_labels
from ._names import torch_name as torch_name
from ._optimizer_order import optimizer_order as optimizer_order
from ._renamed import HF_GPT2_NAMES as HF_GPT2_NAMES
from ._renamed import RESNET_NAMES as RESNET_NAMES
from ._renamed import renamed as renamed
from ._rules import Block as Block
from ._rules import Rule as Rule
from ._rules import Stacked as Stacked
from ._rules import Tied as Tied
from ._rules import fused as fused
from ._rules import single as single
from ._schedules import GroupSchedules as GroupSchedules
from ._schedules import TorchSchedule as TorchSchedule
from ._schedules import schedule_from_torch as schedule_from_torch
from ._several import join_state_dicts as join_state_dicts
from ._several import split_state_dict as split_state_dict
from ._spec import from_torch as from_torch
