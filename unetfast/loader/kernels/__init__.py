"""Code that numba compiles, for steps of a sample that would otherwise be many short calls; each has a way without it."""
