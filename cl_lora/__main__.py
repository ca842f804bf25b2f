"""Lets `python -m cl_lora` stand for `cl-lora`."""

import sys

from cl_lora.cli import main

sys.exit(main())
