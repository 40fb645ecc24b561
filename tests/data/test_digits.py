"""The digits are scikit-learn's, and come without its import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ien.data import digits


def test_the_file_is_what_the_package_gives() -> None:
    images, labels = digits._source()
    source = load_digits()
    assert np.array_equal(images, source.images)
    assert np.array_equal(labels, source.target)
    assert (images.dtype, labels.dtype) == (source.images.dtype, np.int64)


def test_where_it_does_not_lie_as_usual_the_package_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    images, labels = digits._source()
    assert images.shape == (1797, 8, 8)
    assert np.array_equal(labels, load_digits().target)


def test_opening_them_does_not_import_the_package() -> None:
    code = """
import sys
from pathlib import Path
from ien.data import digits
digits.opened(root=Path(), name=None, reflection=False, val_split=None, seed=0, verify=True)
print("sklearn" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
