"""What a run runs on: processes, the machine's threads, memory and clock, and seeds."""
