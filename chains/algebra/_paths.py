"""The names of parameters, and their labels."""

from typing import Any

from linkax.transforms._trees import KeyPath as KeyPath
from linkax.transforms._trees import bare as bare
from linkax.transforms._trees import is_function, said_of
from linkax.transforms._trees import leaves_with_path as leaves_with_path
from linkax.transforms._trees import path_text as path_text
from linkax.transforms._trees import words as words


def labels_by_path(params: Any, labels: Any) -> dict[KeyPath, Any]:
    """The label of every parameter, by its bare path; `None` where there is none."""
    if is_function(labels):
        return {path: labels(path_text(path), leaf) for path, leaf in leaves_with_path(params)}
    return said_of(params, labels).values
