"""Plan files: the program, its size expressions and guards, the container, the arena planner."""
