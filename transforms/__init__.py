"""The links: each is one mechanism of an optimizer, as a pure `optax.GradientTransformation`.

Every link belongs to one of the places in w ← w − α · m / √V: the gradient, the moments m and V, the step, the update.
"""

from ._adadelta import ScaleByPastRmsState as ScaleByPastRmsState
from ._adadelta import scale_by_adadelta as scale_by_adadelta
from ._adadelta import scale_by_past_rms as scale_by_past_rms
from ._bias_correction import BiasCorrectionState as BiasCorrectionState
from ._bias_correction import bias_correction as bias_correction
from ._check import Constant as Constant
from ._check import Fraction as Fraction
from ._check import NonNegative as NonNegative
from ._check import Positive as Positive
from ._check import ProperFraction as ProperFraction
from ._check import Rate as Rate
from ._decoupled import decoupled_weight_decay as decoupled_weight_decay
from ._inverse_time_decay import InverseTimeDecayState as InverseTimeDecayState
from ._inverse_time_decay import scale_by_inverse_time_decay as scale_by_inverse_time_decay
from ._l2 import add_l2_to_grad as add_l2_to_grad
from ._lazy import lazy as lazy
from ._learning_rate import scale_by_learning_rate as scale_by_learning_rate
from ._link import SLOT as SLOT
from ._link import Alternative as Alternative
from ._link import InFront as InFront
from ._link import Link as Link
from ._link import Place as Place
from ._link import ScheduledState as ScheduledState
from ._link import Slot as Slot
from ._link import View as View
from ._link import link as link
from ._masks import matrices_only as matrices_only
from ._mean_square import MeanSquareState as MeanSquareState
from ._mean_square import mean_square as mean_square
from ._meaning import Count as Count
from ._meaning import Gathered as Gathered
from ._meaning import Moment as Moment
from ._meaning import Own as Own
from ._meaning import Stream as Stream
from ._meaning import Weights as Weights
from ._moment_ratio import MomentRatioState as MomentRatioState
from ._moment_ratio import moment_ratio as moment_ratio
from ._momentum import ScaleByMomentumState as ScaleByMomentumState
from ._momentum import scale_by_momentum as scale_by_momentum
from ._negate import negate_grad as negate_grad
from ._nesterov import ScaleByNesterovState as ScaleByNesterovState
from ._nesterov import scale_by_nesterov as scale_by_nesterov
from ._rms import scale_by_rms as scale_by_rms
from ._rows import row_gradient as row_gradient
from ._rss import scale_by_rss as scale_by_rss
from ._running_max import RunningMaxState as RunningMaxState
from ._running_max import running_max as running_max
from ._stddev import scale_by_stddev as scale_by_stddev
from ._sum_of_squares import SumOfSquaresState as SumOfSquaresState
from ._sum_of_squares import sum_of_squares as sum_of_squares
from ._variance import VarianceState as VarianceState
from ._variance import variance as variance
