"""Keys, submissions, builds, jobs and leases: what is built once, by whom, and what comes next."""
