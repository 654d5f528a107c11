"""A person's chat export on a real model, from the file to the leak report."""
