"""One thread for each test process, and for those it starts: nets are small, and threads would wait for each other."""

import os
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# Time decides nothing here, so that plans are the same in every run; tests of the clock ask for it by --measure.
os.environ.setdefault("GHOSTIFY_MEASURE", "0")

import pytest
from command import cli, images  # noqa: F401 - fixtures of several files

from ghostify import measuring


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions by the command line are timed for a moment, where they are timed for seconds."""
    monkeypatch.setattr(measuring, "compare", partial(measuring.compare, seconds=0.01))
    monkeypatch.setattr(measuring, "measure", partial(measuring.measure, seconds=0.01))
