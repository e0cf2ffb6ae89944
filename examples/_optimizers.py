"""What several examples share: the named optimizers, each as a function of its learning rate."""

from collections.abc import Callable

from linkax import Chain, adadelta, adagrad, adam, adamw, nadam, rmsprop, sgd
from linkax.transforms import Rate

OPTIMIZERS: dict[str, Callable[[Rate], Chain]] = {
    "SGD": lambda learning_rate: sgd(learning_rate),
    "SGD, momentum": lambda learning_rate: sgd(learning_rate, momentum=0.9),
    "SGD, Nesterov": lambda learning_rate: sgd(learning_rate, momentum=0.9, nesterov=True),
    "Adagrad": lambda learning_rate: adagrad(learning_rate),
    "RMSprop": lambda learning_rate: rmsprop(learning_rate),
    "Adadelta": lambda learning_rate: adadelta(learning_rate),
    "Adam": lambda learning_rate: adam(learning_rate),
    "AMSGrad": lambda learning_rate: adam(learning_rate, amsgrad=True),
    "AdamW": lambda learning_rate: adamw(learning_rate),
    "NAdam": lambda learning_rate: nadam(learning_rate),
}
