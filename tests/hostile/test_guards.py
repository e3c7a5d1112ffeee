"""Each guard holds; and switched off, its attack does the harm that it is there for."""

import sys

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from hostile.harm import GUARDS


@pytest.mark.parametrize("name", GUARDS)
def test_the_guard_holds(name, tmp_path):
    GUARDS[name].attack(tmp_path)


@pytest.mark.parametrize("name", GUARDS)
def test_without_the_guard_the_harm_is_seen(name, tmp_path, monkeypatch):
    where, what, instead = GUARDS[name].off
    if isinstance(where, dict):
        monkeypatch.setitem(where, what, instead)
    else:
        monkeypatch.setattr(where, what, instead)
    if sys.platform != "linux" and name == "length before parsing":
        pytest.skip("the peak of memory is read from /proc")

    with pytest.raises((AssertionError, TypeError, UnsupportedAlgorithm)):
        GUARDS[name].attack(tmp_path)
