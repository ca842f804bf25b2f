from chromium import CHROMIUM
from hypothesis import settings

# A busy machine makes any example slow: time limits would fail at random.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Not collected rather than skipped where there is no browser: a skipped test reads as a passed one.
collect_ignore = [] if CHROMIUM else ["test_html_browser.py"]
