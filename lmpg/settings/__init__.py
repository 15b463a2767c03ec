"""Settings: validated sections, raw nested dicts, presets."""
