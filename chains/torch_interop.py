"""Moving between PyTorch and JAX: optimizers, their states, and parameters.

Nothing here imports PyTorch; what comes from it is read as it is. `export_state` makes tensors when it is given an
optimizer.
"""

from ._torch_names import Layout as Layout
from ._torch_names import export_params as export_params
from ._torch_names import import_params as import_params
from ._torch_names import torch_labels as torch_labels
from ._torch_names import torch_name as torch_name
from ._torch_spec import from_torch as from_torch
from ._torch_state import export_state as export_state
from ._torch_state import import_state as import_state
