"""What a run will need of the machine's memory, calculated before it is taken."""
