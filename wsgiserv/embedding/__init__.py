"""The server inside other programs: `wsgiserv.run` serves in this process, `wsgiserv.Server` in a child process."""
