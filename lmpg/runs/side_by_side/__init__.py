"""Many runs at once: a table of a folder of runs, and curves of runs side by side."""
