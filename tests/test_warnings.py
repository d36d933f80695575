"""A warning that scratch raises fails the test that meets it."""

import warnings

import pytest


def warn_as(module):
    """Raise a warning as if a line of the named module had."""
    warnings.warn_explicit("late", UserWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["scratch", "scratch.nn.neuron"])
def test_a_warning_of_scratch_is_an_error(module):
    with pytest.raises(UserWarning, match="late"):
        warn_as(module)


@pytest.mark.parametrize("module", ["torch", "scratchpad"])
def test_a_warning_of_others_is_not(module):
    with warnings.catch_warnings(record=True) as caught:
        warn_as(module)
    assert len(caught) == 1
