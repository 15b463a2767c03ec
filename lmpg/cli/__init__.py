"""The command line: the only place that knows argv and tyro."""
