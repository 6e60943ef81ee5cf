"""Measurements, side by side with peers. Loopback only, bounded in time."""
