"""Measurements of wsgiserv, alone and beside its peers. Loopback only, bounded in time."""
