"""What a chain looks like: as text, in a notebook, and next to another one."""

import html.parser

import optax
import pytest

from linkax.chains import adagrad, adam, adamw, chain, diff, nadam, rmsprop, sgd
from linkax.transforms import decoupled_weight_decay, matrices_only, moment_ratio, running_max, scale_by_learning_rate

ADAMW = """\
chain
├─ clip_by_global_norm(max_norm=1.0)
├─ moment_ratio(eps=1e-08)                            moment
│  ├─ first
│  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
│  │  └─ bias_correction(decay=0.9)                   moment
│  └─ second
│     ├─ mean_square(decay=0.999)                     moment
│     └─ bias_correction(decay=0.999)                 moment
├─ decoupled_weight_decay(weight_decay=0.01)          step
└─ scale_by_learning_rate(learning_rate=0.001)        step"""


def test_text():
    assert repr(chain(optax.clip_by_global_norm(1.0), adamw())) == ADAMW


def test_places_line_up():
    for tx in (adamw(), nadam(), rmsprop(momentum=0.9), adagrad(lr_decay=0.1), sgd(momentum=0.9, nesterov=True)):
        columns = {line.rindex("  ") for line in repr(tx).splitlines() if line.endswith(("moment", "step", "gradient"))}
        assert len(columns) == 1


def test_a_ratio_inside_a_ratio():
    inner = moment_ratio(optax.identity(), adam().links[0].hyperparams["second"], 1e-8)
    outer = chain(moment_ratio(inner, adam().links[0].hyperparams["second"], 1e-6), scale_by_learning_rate(0.1))
    assert "│  │     └─ second" in repr(outer)
    with pytest.raises(ValueError, match="first.second.mean_square"):
        outer.drop("foo")
    assert repr(outer.drop("first.second.bias_correction")).count("bias_correction") == 1


def test_an_empty_moment_says_so():
    tx = adam().drop("scale_by_momentum").drop("first.bias_correction")
    assert "first: the input" in repr(tx)


def test_html_is_whole_and_escaped():
    class Checker(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.text = [], ""

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.text += data

    checker = Checker()
    checker.feed(adamw(lambda count: 0.1, weight_decay_mask=matrices_only)._repr_html_())
    assert checker.open == []
    for part in ("learning_rate=<lambda>", "mask=matrices_only", "mean_square(decay=0.999)", "moment", "step"):
        assert part in checker.text


def test_equal_chains_have_no_diff():
    swapped = adam(1e-3, weight_decay=1e-2).swap("add_l2_to_grad", decoupled_weight_decay(1e-2))
    difference = diff(swapped, adamw(1e-3, weight_decay=1e-2))
    assert not difference
    assert difference == repr(difference) == ""


def lines_with(difference, mark):
    return [line for line in difference.splitlines() if f" {mark}" in f"{line} "]


def test_diff_marks_links_and_hyperparameters():
    difference = diff(adam(1e-3, weight_decay=1e-2), adamw(1e-3, b1=0.8, amsgrad=True))
    (left,) = [line for line in difference.splitlines() if line.rstrip().endswith("<")]
    assert "add_l2_to_grad(weight_decay=0.01)" in left
    right = [line for line in difference.splitlines() if line.lstrip().startswith(">")]
    assert len(right) == 2
    assert "running_max()" in right[0]
    assert "decoupled_weight_decay(weight_decay=0.01)" in right[1]
    changed = [line for line in difference.splitlines() if "*" in line]
    assert len(changed) == 2
    assert "*decay=0.9*, *dampening=0.9*" in changed[0]
    assert "*decay=0.8*, *dampening=0.8*" in changed[0]
    assert "bias_correction(*decay=0.9*)" in changed[1]


def test_diff_shows_a_default_that_the_other_does_not_have():
    difference = diff(adagrad(), adagrad(eps_in_sqrt=True))
    assert "*eps_in_sqrt=False*" in difference
    assert "*eps_in_sqrt=True*" in difference


def test_diff_marks_what_looks_the_same_and_is_not():
    difference = diff(adam(lambda count: 0.1), adam(lambda count: 0.2))
    (line,) = [line for line in difference.splitlines() if "|" in line]
    assert line.count("*learning_rate=<lambda>*") == 2


def test_diff_lines_up():
    difference = diff(adam(weight_decay=0.1), adamw(weight_decay=0.1))
    starts = {line.index("├", 1) for line in difference.splitlines() if line.count("├") == 2 and line[0] == "├"}
    assert len(starts) == 1


def test_diff_of_something_else():
    with pytest.raises(TypeError, match="^diff: b must be a chain, got 3"):
        diff(adam(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^diff: a must be a chain, got running_max"):
        diff(running_max(), adam())  # type: ignore[arg-type]
