"""The chains: the named optimizers from SGD to AdamW, each one expression of links, and what acts on whole chains."""

from ._ablations import ablations as ablations
from ._adadelta import adadelta as adadelta
from ._adagrad import adagrad as adagrad
from ._adam import adam as adam
from ._adamw import adamw as adamw
from ._apply import apply_updates as apply_updates
from ._chain import Chain as Chain
from ._chain import chain as chain
from ._diff import diff as diff
from ._live import Live as Live
from ._live import LiveState as LiveState
from ._live import live as live
from ._migrate import Migration as Migration
from ._migrate import migrate as migrate
from ._nadam import nadam as nadam
from ._param_groups import param_groups as param_groups
from ._rmsprop import rmsprop as rmsprop
from ._sgd import sgd as sgd
from ._sparse_adam import sparse_adam as sparse_adam
from ._sweep import sweep as sweep
