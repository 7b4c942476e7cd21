"""A report of rows without a store, for tests of several files."""

import pytest
from reportpages import rows_of_a_suite, source_of

from zsqbench.reports.site.writing import write_report


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A report of rows without a store."""
    folder = tmp_path_factory.mktemp("written")
    write_report(
        source_of(rows_of_a_suite(), folder / "home", ["digits:resnet20:dgh:rtn:hw/w4a4:7"]), folder / "report"
    )
    return folder / "report"
