import pytest
from chromium import CHROMIUM
from fabricate import fabricate_run
from hypothesis import settings

# A busy machine makes any example slow: time limits would fail at random.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Not collected rather than skipped where there is no browser: a skipped test reads as a passed one.
collect_ignore = [] if CHROMIUM else ["test_html_browser.py"]


@pytest.fixture
def run_path(tmp_path):
    """A small finished run folder: 3 arms, 5 references, 4 domains, 2 seeds."""
    return fabricate_run(tmp_path / "runs" / "pacs_trial")
