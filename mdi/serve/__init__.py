"""A model over HTTP, as the programs that people already have ask for it. Nothing of it is imported unless `mdi serve` runs."""
