"""Many jobs done by worker processes, here or elsewhere, so that no job's death costs another."""
