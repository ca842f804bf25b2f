"""Where the browser is, if there is one."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
