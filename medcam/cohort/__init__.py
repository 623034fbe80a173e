"""Many cases: the table of cases, one case's run, and what they add up to."""
