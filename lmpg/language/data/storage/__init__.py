"""Data as it lies in memory: files of text, rows, and token ids, each as compact as on a disk."""
