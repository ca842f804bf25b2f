"""Training strategies: Avalanche templates that know no merge formula."""
