"""The worker classes. Must not know the master: they meet in the scoreboard, the pipes and signals."""
