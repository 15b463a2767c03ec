"""Disks of several machines: what each must have, is sent, or need not see."""
