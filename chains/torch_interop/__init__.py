"""Moving between PyTorch and JAX: optimizers, their states, and parameters.

Nothing here imports PyTorch; what comes from it is read as it is. `export_state` makes tensors when it is given an
optimizer.
"""

from ._names import Layout as Layout
from ._names import export_params as export_params
from ._names import import_params as import_params
from ._names import torch_labels as torch_labels
from ._names import torch_name as torch_name
from ._spec import from_torch as from_torch
from ._state import export_state as export_state
from ._state import import_state as import_state
