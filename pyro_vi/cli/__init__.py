"""The command line: `commands` defines the commands and their options, `entry` parses, runs and prints;
`stopping` ends a command at a signal."""
