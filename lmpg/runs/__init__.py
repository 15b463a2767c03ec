"""Everything a run leaves in its folder: settings, checkpoints, logs, summary, report."""
