import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published():
    """The table of published training speed, which is not part of the repository."""
    folder = os.environ.get("ARMILLARY_PUBLISHED")
    if folder is None:
        pytest.skip("ARMILLARY_PUBLISHED is not set: it names the folder with plan/training_throughput.csv")
    return Path(folder) / "plan" / "training_throughput.csv"
