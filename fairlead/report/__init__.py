"""The report of a run and the pages made of the same parts; reads the run's folder only."""
