"""Training strategies: Avalanche templates that know no merge formula."""

import cl_lora._compat  # noqa: F401  (must run before Avalanche imports torchvision)
