"""How long one waits for the command line and the socket, and what an idle daemon holds."""
