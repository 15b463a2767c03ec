"""The machine: processes, seeds, threads, memory, signals, clocks."""
