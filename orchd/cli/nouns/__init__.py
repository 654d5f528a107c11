"""One file a noun; each holds `COMMANDS`. Loaded when that noun is asked for."""
