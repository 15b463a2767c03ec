"""What a checkpoint is made of: its state as files, and where a run stands."""
