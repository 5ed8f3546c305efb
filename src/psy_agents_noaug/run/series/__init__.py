"""Several trainings of one configuration, by fold and by seed: a plan, the loop, what is pooled."""
