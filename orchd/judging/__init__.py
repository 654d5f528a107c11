"""The worker's side of the gate of averages: here averaging and what reads data sets and runs bases meet."""
