import pytest
from fabricate import fabricate_run


@pytest.fixture
def run_path(tmp_path):
    """A small finished run folder: 3 arms, 5 references, 4 domains, 2 seeds."""
    return fabricate_run(tmp_path / "runs" / "pacs_trial")
