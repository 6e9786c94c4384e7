"""Charts in tests are drawn for a machine of round numbers; one test measures the real one."""

import pytest

from sterna import inspection
from sterna.inspection.peaks import Peaks


@pytest.fixture(autouse=True, scope="package")
def round_peaks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "measure_peaks", lambda: Peaks(bandwidth=1e10, flops=1e11))
        yield
