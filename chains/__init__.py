"""The chains: the named optimizers from SGD to AdamW, each one expression of links, and what acts on whole chains."""

from .algebra._ablations import ablations as ablations
from .algebra._chain import Chain as Chain
from .algebra._chain import chain as chain
from .algebra._diff import diff as diff
from .laboratory._sweep import sweep as sweep
from .optimizers._adadelta import adadelta as adadelta
from .optimizers._adagrad import adagrad as adagrad
from .optimizers._adam import adam as adam
from .optimizers._adamw import adamw as adamw
from .optimizers._nadam import nadam as nadam
from .optimizers._rmsprop import rmsprop as rmsprop
from .optimizers._sgd import sgd as sgd
from .optimizers._sparse_adam import sparse_adam as sparse_adam
from .running._apply import apply_updates as apply_updates
from .running._live import Live as Live
from .running._live import LiveState as LiveState
from .running._live import live as live
from .running._migrate import Migration as Migration
from .running._migrate import migrate as migrate
from .running._migrate_nnx import migrate_nnx as migrate_nnx
from .running._param_groups import param_groups as param_groups
