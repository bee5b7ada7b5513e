"""The command line: `commands` says what can be asked, `entry` parses, calls and prints."""
