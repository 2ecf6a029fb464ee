"""The subcommands of `bpt`, a module for each noun."""
