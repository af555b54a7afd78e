"""The commands of `recurra`, one module each; heavy imports wait until a command runs, so that `--help` is quick."""
