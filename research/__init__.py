"""Evidence: the experiments behind docs/results. Research imports the package, never the reverse."""
