"""Language models from Python, as `lmpg` offers it: objects become settings, a folder a `Run`."""
