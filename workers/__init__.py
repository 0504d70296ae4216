"""The composition root: the command line, and what a machine does with a job."""
