"""Moving between PyTorch and JAX: optimizers, their states, and parameters.

Nothing here imports PyTorch; its objects are read without it. `export_state` returns tensors if it is given an
optimizer.
"""

from ._checkpoint import Checkpoint as Checkpoint
from ._checkpoint import SavedOptimizer as SavedOptimizer
from ._checkpoint import inspect_checkpoint as inspect_checkpoint
from ._export_state import export_state as export_state
from ._import_state import import_state as import_state
from ._layouts import CONV as CONV
from ._layouts import CONV_TRANSPOSE as CONV_TRANSPOSE
from ._layouts import CONV_TRANSPOSE_KERNEL as CONV_TRANSPOSE_KERNEL
from ._layouts import HF_CONV1D as HF_CONV1D
from ._layouts import IDENTITY as IDENTITY
from ._layouts import LINEAR as LINEAR
from ._layouts import Layout as Layout
from ._names import export_params as export_params
from ._names import import_params as import_params
from ._names import torch_labels as torch_labels
from ._names import torch_name as torch_name
from ._optimizer_order import optimizer_order as optimizer_order
from ._spec import from_torch as from_torch
