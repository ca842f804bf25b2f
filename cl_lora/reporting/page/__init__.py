"""What stands in the HTML report, section by section; :mod:`cl_lora.reporting.html` renders it."""
